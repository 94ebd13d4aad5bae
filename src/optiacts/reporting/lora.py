"""The ways of training: everything, adapters only (LoRA, QLoRA), or nothing but what comes before the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from optiacts.reporting.names import TRAIN_MODES

_ADAPTER = "default"


@dataclass(frozen=True)
class Lora:
    """Adapters. ``targets``: the names that a Linear's path may end in; all Linears in the repeated layers if empty.

    ``dtype``: of the adapters; None is that of the base. PEFT casts them to float32 by default
    (``autocast_adapter_dtype=True``).
    """

    rank: int = 16
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    dtype: torch.dtype | None = torch.float32

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"rank must be a whole number from 1 on; got {self.rank!r}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number from 0 to less than 1; got {self.dropout!r}")
        if isinstance(self.targets, str):
            raise ValueError(f'targets must be names, such as ("q_proj", "v_proj"); got {self.targets!r}')


class LoraLinear(torch.nn.Module):
    """base(x) + B(A(dropout(x))) with a frozen base: LoRA as in Hu et al. 2021, cast as PEFT does.

    With adapters in another dtype than x, x is cast for them, and each adapter holds its own copy. What conversion
    knows PEFT's layers by has PEFT's names.
    """

    def __init__(self, base: torch.nn.Module, in_features: int, out_features: int, lora: Lora) -> None:
        super().__init__()
        weight = next(base.parameters())
        dtype = lora.dtype or getattr(base, "compute_dtype", weight.dtype)
        like = {"dtype": dtype, "device": weight.device}
        self.base = base
        first = torch.nn.Linear(in_features, lora.rank, bias=False, **like)
        second = torch.nn.Linear(lora.rank, out_features, bias=False, **like)
        dropout = torch.nn.Dropout(lora.dropout) if lora.dropout else torch.nn.Identity()
        torch.nn.init.zeros_(second.weight)
        self.lora_A = torch.nn.ModuleDict({_ADAPTER: first})
        self.lora_B = torch.nn.ModuleDict({_ADAPTER: second})
        self.lora_dropout = torch.nn.ModuleDict({_ADAPTER: dropout})

    def _cast_input_dtype(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        result = self.base(input)
        first: Any = self.lora_A[_ADAPTER]
        second, dropout = self.lora_B[_ADAPTER], self.lora_dropout[_ADAPTER]
        update: Tensor = second(first(dropout(self._cast_input_dtype(input, first.weight.dtype))))
        return (result + update).to(result.dtype)


class FourBitLinear(torch.nn.Module):
    """A frozen Linear whose weight is kept in 4 bits, as bitsandbytes keeps it for QLoRA (Dettmers et al. 2023).

    Half a byte for each element, and a scale for each 64 of them, itself in a byte with a float32 for each 256.
    Forward and backward each make the weight in the compute dtype for their product. (Sizes, not values.)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.compute_dtype = weight.dtype
        packed, scales = -(-weight.numel() // 2), -(-weight.numel() // 64)
        self.weight = _frozen(weight, packed, torch.uint8)
        self.scales = _frozen(weight, scales, torch.uint8)
        self.outer_scales = _frozen(weight, -(-scales // 256), torch.float32)
        self.bias = bias

    def forward(self, input: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        result = _FourBitProduct.apply(input, self.weight, shape)
        return result if self.bias is None else result + self.bias


class _FourBitProduct(torch.autograd.Function):
    """input @ weight.T, with the weight made from its 4 bits in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, input.dtype
        return functional.linear(input, packed.new_empty(shape, dtype=input.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return grad @ packed.new_empty(ctx.shape, dtype=grad.dtype), None, None


def _frozen(like: Tensor, count: int, dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(like.new_empty(count, dtype=dtype), requires_grad=False)


def set_train_mode(model: torch.nn.Module, mode: str, lora: Lora | None = None) -> None:
    """Prepares ``model`` for training all of it, LoRA adapters in it, or none of it.

    ``lora`` freezes every parameter and gives the Linears inside the repeated layers (those in a
    ``torch.nn.ModuleList``; every Linear, if there is no list) an adapter. ``qlora`` keeps the weights of all Linears
    in the repeated layers in 4 bits besides; embeddings, norms and heads stay as they are. ``frozen`` freezes every
    parameter and lets the gradient flow through to the embeddings, as soft prompts need it.
    """
    if mode not in TRAIN_MODES:
        raise ValueError(f"train_mode must be one of {', '.join(TRAIN_MODES)}; got {mode!r}")
    if mode == "full":
        return
    model.requires_grad_(False)
    if mode == "frozen":
        _embeddings(model).register_forward_hook(_wants_gradient)
        return
    _add_adapters(model, lora or Lora())
    if mode == "qlora":
        _quantise(model)


def targets_in(model: torch.nn.Module, lora: Lora) -> list[tuple[torch.nn.Module, str, torch.nn.Module]]:
    """The Linears that get an adapter, as ``linears`` tells them; ``ValueError`` where a target is not there."""
    found = list(linears(model))
    if not found:
        raise ValueError("train_mode 'lora' needs a model with Linear layers; it has none")
    names = {name for _, name, _ in found}
    missing = [name for name in lora.targets if name not in names]
    if missing:
        there = ", ".join(sorted(names))
        raise ValueError(f"--lora-targets: no Linear is called {missing[0]!r}; there are {there}")
    return [one for one in found if not lora.targets or one[1] in lora.targets]


def _add_adapters(model: torch.nn.Module, lora: Lora) -> None:
    for parent, name, child in targets_in(model, lora):
        sizes = _features(child)
        assert sizes is not None
        setattr(parent, name, LoraLinear(child, *sizes, lora))


def _quantise(model: torch.nn.Module) -> None:
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    adapters = {id(one) for layer in layers for part in (layer.lora_A, layer.lora_B) for one in part.values()}
    for parent, name, child in list(linears(model)):
        if id(child) not in adapters and isinstance(child, torch.nn.Linear):
            setattr(parent, name, FourBitLinear(child.weight, child.bias))


def linears(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Module]]:
    """The Linears in the repeated layers: the module that each is part of, its name there, itself."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    roots: list[torch.nn.Module] = [*lists] or [model]
    parents = {id(parent): parent for root in roots for parent in root.modules()}
    for parent in parents.values():
        for name, child in list(parent.named_children()):
            if _features(child) is not None:
                yield parent, name, child


def _features(module: torch.nn.Module) -> tuple[int, int] | None:
    """(in, out) of a Linear, or of GPT-2's Conv1D, which is a Linear with its weight transposed."""
    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):
        return module.weight.shape[0], module.weight.shape[1]
    return None


def _embeddings(model: torch.nn.Module) -> torch.nn.Module:
    own = getattr(model, "get_input_embeddings", None)
    if callable(own):
        with suppress(NotImplementedError):  # transformers' models without any have it too
            return own()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            return module
    raise ValueError(
        "train_mode 'frozen' needs a model with an embedding; give inputs that require a gradient instead"
    )


def _wants_gradient(module: torch.nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_(True)
