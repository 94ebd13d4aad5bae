"""From the output back to the input, in float64: for float64 tensors, tables and second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts.curves import ClosedForm, Curve
from optiacts.curves._check import FURTHEST_LEFT

_STRAIGHT = 1e3  # beyond it every curve's f' is 1 in float64
_STEPS = 64  # halves a bracket of 800 to below one float64 ulp of x


def inverse(curve: Curve, y: Tensor, left: Tensor) -> Tensor:
    """The x on the branch given by ``left`` (bool) with f(x) = ``y``; float64 in and out, NaN stays NaN.

    Bisection: it needs no derivative, so the minimum costs no special case. An output below the minimum
    (rounding) gives x_min; a left output of 0 gives the far end of the branch, where f' is 0.
    """
    if isinstance(curve.decoder, ClosedForm):
        return curve.decoder.inverse(y, left)
    x_min, k = torch.full_like(y, curve.x_min), curve.scale
    low = torch.where(left, FURTHEST_LEFT / k, torch.where(y < 0, x_min, y))
    high = torch.where(left, x_min, low + 2.0 / k)  # f(x) <= x < f(x) + 1 for x > 0, and x_min > -2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        beyond = (curve.function(middle, torch) > y) == left
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    return low + 0 * y.clamp(max=0)


def derivative_from_output(curve: Curve, y: Tensor, left: Tensor) -> Tensor:
    """f'(x) of the x that ``inverse`` finds; 1 far out, where formulas in x may overflow."""
    if isinstance(curve.decoder, ClosedForm):
        return curve.decoder.slope(y, left).to(y.dtype)
    x = inverse(curve, y, left)
    return torch.where(y > _STRAIGHT / curve.scale, 1.0, curve.derivative(x, torch))
