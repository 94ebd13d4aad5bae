"""The forward that a curve would have if it were rounded only once: the same on every machine, unlike PyTorch's."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts.curves import Curve


def rounded_forward(curve: Curve, x: Tensor) -> Tensor:
    """f(x) in float64, rounded once to the dtype of ``x``: bfloat16, float16 or float32."""
    return round_once(curve.function(x.double(), torch), x.dtype)


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
