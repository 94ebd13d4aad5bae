"""What is compared: each method as a change of the same stack of layers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy

import optiacts
from benchmarks.frontier.inverted import invert
from benchmarks.frontier.liger import use_liger
from benchmarks.frontier.models import Model, Stack
from optiacts.reporting.conversion import CONVERSIONS

BUDGETS = (0.5, 0.25, 0.0)  # of torch._functorch.config.activation_memory_budget; 1 is PyTorch's default
EVERY = {3: "every third layer", 2: "every second layer", 1: "every layer"}

CHECKPOINTING, SELECTIVE, COMPILED = "PyTorch, checkpointed", "selective checkpointing", "torch.compile"
STAGES, OURS = "OptiActs, in stages", "OptiActs, checkpointed"
OURS_SELECTIVE, OURS_COMPILED = "OptiActs, selective checkpointing", "OptiActs + torch.compile"
PUBLISHED, LIGER = "Inverted Activations' formula", "Liger kernels"
FAMILIES = (CHECKPOINTING, SELECTIVE, COMPILED, PUBLISHED, LIGER, STAGES, OURS, OURS_SELECTIVE, OURS_COMPILED)

_ATEN = torch.ops.aten
_PRODUCTS = {
    getattr(_ATEN, name).default
    for name in (
        *("mm", "addmm", "bmm", "convolution"),
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
}


def keeping_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What people write today: matrix products, convolutions and attention are kept, the rest is computed again."""
    return CheckpointPolicy.MUST_SAVE if op in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


@dataclass(frozen=True)
class Method:
    """One point of the picture.

    Args:
        name, family: a family's methods are joined by a line.
        change: what is done to the stack before it runs: a stage of conversion, ``PUBLISHED`` or ``LIGER``.
        every: every so many layers one is checkpointed; 0 for none.
        policy: of selective checkpointing.
        budget: ``activation_memory_budget`` where it is compiled.
    """

    name: str
    family: str
    change: str = ""
    every: int = 0
    policy: Callable[..., Any] | None = None
    budget: float | None = None

    @property
    def exact(self) -> bool:
        """Whether its loss must be PyTorch's to the bit."""
        return self.budget is None and self.change not in (PUBLISHED, LIGER)

    def stack(self, layers: nn.ModuleList, dry: bool = False) -> Stack:
        """``layers`` in this method; compiled later, and in a dry run not at all where it is a kernel's formula."""
        stack = Stack(layers, self.every, self.policy)
        if self.change in CONVERSIONS:
            options = CONVERSIONS[self.change].options
            optiacts.convert(stack, **options._asdict())
        elif self.change == PUBLISHED:
            invert(stack, compiled=not dry)
        elif self.change == LIGER:
            use_liger(stack)
        return stack

    def compiled(self, stack: nn.Module, backend: str) -> Callable[..., torch.Tensor]:
        """What is called, which compiles when first called: within ``budgeted``."""
        if self.budget is None:
            return stack
        return torch.compile(stack, backend=backend, fullgraph=True, dynamic=False)

    def budgeted(self) -> Any:
        """Sets the budget while something is compiled."""
        return torch._functorch.config.patch(activation_memory_budget=1.0 if self.budget is None else self.budget)


EVERYTHING = "OptiActs"  # in all stages
EAGER = Method("PyTorch", CHECKPOINTING)
AGAIN = replace(EAGER, name="PyTorch again")  # how far two equal things are apart: the noise
PLAIN_COMPILED = Method("torch.compile", COMPILED, budget=1.0)


def methods(model: Model, device: str) -> list[Method]:
    """All for ``model``, PyTorch first; the later ones may be left out where time is short."""
    everything = Method(EVERYTHING, OURS, change=model.stages[-1])
    compiled = Method("OptiActs + torch.compile", OURS_COMPILED, change=model.stages[-1], budget=1.0)
    return [
        EAGER,
        AGAIN,
        everything,
        *_every(EAGER),
        *_every(everything),
        *(Method(f"OptiActs: {stage}", STAGES, change=stage) for stage in model.stages[:-1]),
        Method("every layer, products kept", SELECTIVE, every=1, policy=keeping_products),
        Method(
            "OptiActs, every layer, `checkpoint_policy`",
            OURS_SELECTIVE,
            change=model.stages[-1],
            every=1,
            policy=optiacts.checkpoint_policy,
        ),
        Method("Inverted Activations' formula", PUBLISHED, change=PUBLISHED),
        *([Method("Liger kernels", LIGER, change=LIGER)] if _liger_runs(model, device) else []),
        PLAIN_COMPILED,
        compiled,
        *(_budgeted(base, budget) for budget in BUDGETS for base in (PLAIN_COMPILED, compiled)),
    ]


def _every(base: Method) -> Iterator[Method]:
    for every, words in EVERY.items():
        yield replace(base, name=words if base == EAGER else f"{base.name}, {words}", every=every)


def _budgeted(base: Method, budget: float) -> Method:
    return replace(base, name=f"{base.name}, budget {budget:g}", budget=budget)


@functools.cache
def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _liger_runs(model: Model, device: str) -> bool:
    return model.name == "Llama" and device == "cuda" and _has_liger()
