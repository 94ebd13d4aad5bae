"""The forward that a curve would have if PyTorch rounded correctly: the same on every machine, unlike PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optiacts.curves import Curve


def rounded_forward(curve: Curve, x: Tensor) -> Tensor:
    """f(x) in float64, rounded once to the dtype of ``x``: bfloat16 or float16.

    A forward that is no single op of PyTorch is rounded after each of its steps, as it is in those dtypes.
    """
    if curve.ops:
        return round_once(curve.function(x.double(), torch), x.dtype)
    with _RoundedSteps(x.dtype):
        return curve.forward(x.double()).to(x.dtype)


class _RoundedSteps(TorchDispatchMode):
    """Rounds the float64 result of every op to ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return round_once(result, self._dtype).double() if result.dtype == torch.float64 else result


def round_once(y: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 ``y`` in ``dtype``, to nearest, ties to even. (``y.to(dtype)`` rounds to float32 in between.)"""
    ulp = unit(y, dtype)
    return (torch.round(y / ulp) * ulp).to(dtype)


def unit(y: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring ``dtype`` numbers around float64 ``y``: powers of 2."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(y)  # of twice the leading power of 2
    _, lowest = torch.frexp(torch.tensor(limits.tiny, dtype=torch.float64))
    return torch.ldexp(torch.ones_like(y), exponent.clamp(min=int(lowest)) - 1) * limits.eps
