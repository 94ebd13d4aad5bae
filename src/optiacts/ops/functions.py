"""What the autograd Functions of all families share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decoding:
    """How to read what is saved. One object, because vmap would take a list among the arguments apart."""

    name: str  # of the curve
    order: tuple[int, ...]  # the memory order of the dimensions: see ``optiacts.layouts``


def run(function: type[torch.autograd.Function], input: Tensor, *args: Any) -> Any:
    """``function.apply(input, *args)``, faster where neither a compiler nor torch.func looks on.

    ``Function.apply`` binds default arguments with ``inspect`` on every call, which takes half as long as a whole
    small activation. Outside transforms nothing else happens before its base class's ``apply``.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_functorch_wrapped_tensor(input)
    ):
        return function.apply(input, *args)
    return super(torch.autograd.Function, function).apply(input, *args)  # type: ignore[misc]


def differentiable() -> bool:
    """Whether someone may differentiate what is computed now."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()
