"""The ways of training: everything, adapters only (LoRA), or nothing but what comes before the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TRAIN_MODES = ("full", "lora", "frozen")
RANK = 16


class LoraLinear(torch.nn.Module):
    """base(x) + B(A(x)) with a frozen base: LoRA as in Hu et al. 2021, without dropout, in the base's dtype."""

    def __init__(self, base: torch.nn.Module, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.base = base
        self.lora_a = torch.nn.Linear(in_features, rank, bias=False, **like)
        self.lora_b = torch.nn.Linear(rank, out_features, bias=False, **like)
        torch.nn.init.zeros_(self.lora_b.weight)

    def forward(self, input: Tensor) -> Tensor:
        return self.base(input) + self.lora_b(self.lora_a(input))


def set_train_mode(model: torch.nn.Module, mode: str, rank: int = RANK) -> None:
    """Prepares ``model`` for training all of it, LoRA adapters in it, or none of it.

    ``lora`` freezes every parameter and gives every Linear inside the repeated layers (those in a
    ``torch.nn.ModuleList``; every Linear, if there is no list) an adapter of rank ``rank``. ``frozen`` freezes
    every parameter and lets the gradient flow through to the embeddings, as soft prompts need it.
    """
    if mode not in TRAIN_MODES:
        raise ValueError(f"train_mode must be one of {', '.join(TRAIN_MODES)}; got {mode!r}")
    if mode == "full":
        return
    model.requires_grad_(False)
    if mode == "lora":
        _add_adapters(model, rank)
    else:
        _embeddings(model).register_forward_hook(_wants_gradient)


def _add_adapters(model: torch.nn.Module, rank: int) -> None:
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    roots: list[torch.nn.Module] = [*lists] or [model]
    parents = {id(parent): parent for root in roots for parent in root.modules()}
    added = 0
    for parent in parents.values():
        for name, child in list(parent.named_children()):
            sizes = _features(child)
            if sizes is not None:
                setattr(parent, name, LoraLinear(child, *sizes, rank))
                added += 1
    if not added:
        raise ValueError("train_mode 'lora' needs a model with Linear layers; it has none")


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
        return own()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            return module
    raise ValueError(
        "train_mode 'frozen' needs a model with an embedding; give inputs that require a gradient instead"
    )


def _wants_gradient(module: torch.nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_(True)
