"""From the output back to the input, in float64: for float64 tensors, tables and second derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves import ClosedForm, Curve, CurveError
from optiacts.curves._check import FURTHEST_LEFT

_STRAIGHT = 1e3  # beyond it every curve's f' is 1 in float64
_NEAR = 1e-6  # below it v has lost more digits to the rounding of y than the start of a search lacks
_MOST_STEPS = 64
_SETTLED = 1e-13  # a step that changes x or f(x) by less than this part of them is a matter of rounding


def inverse(curve: Curve, y: Tensor, left: Tensor) -> Tensor:
    """The x on the branch given by ``left`` (bool) with f(x) = ``y``; float64 in and out, NaN stays NaN.

    An output below the minimum (rounding) gives x_min; a left output of 0 gives the far end of the branch, where f'
    is 0; the output that a curve has from ``ends`` on gives an x beyond it.
    """
    if isinstance(curve.decoder, ClosedForm):
        return curve.decoder.inverse(y, left)
    search = _Search(curve, y, left)
    for _ in range(_steps(curve)):
        search.step()
    x, ends = search.x, curve.decoder.ends
    if ends is not None:
        x = torch.where(~left & (y >= curve.ceiling(y.dtype)), x.clamp(min=ends), x)
    return x + 0 * y.clamp(max=0)


class _Search:
    """Newton's iteration within a bracket, for a variable in which a branch is nearly straight.

    With d the depth of an output, how far it is from the minimum,

        d = (y - y_min) / -y_min   on the right branch,
        d = -log(y / y_min)        on the left branch,

    v = sqrt(d) grows like |x - x_min| at the minimum, where d itself has no slope. With r = sqrt(d(x)), Newton's step
    for r = v is the one for d(x) = v^2 times 2 r / (r + v). Where it leads out of the bracket, that is halved.
    """

    def __init__(self, curve: Curve, y: Tensor, left: Tensor) -> None:
        self._curve, self._y, self._left = curve, y, left
        x_min, y_min, k = curve.x_min, curve.y_min, curve.scale
        self._low = torch.where(left, FURTHEST_LEFT / k, torch.where(y < 0, x_min, y))
        self._high = torch.where(left, x_min, self._low + 2.0 / k)  # f(x) <= x < f(x) + 1 for x > 0, and x_min > -2
        self._depth = torch.where(left, -torch.log((y / y_min).clamp(min=0)), 1 - y / y_min).clamp(min=0)
        self._v = v = self._depth.sqrt()
        unit, bent = _start(curve)
        start = x_min + v * torch.where(left, -unit - bent * v, unit)
        self.x = torch.where(v.isinf(), self._low, start.clamp(self._low, self._high))
        self._known = (v < _NEAR) | v.isinf()

    def step(self) -> None:
        x, y, left, y_min = self.x, self._y, self._left, self._curve.y_min
        f, slope = self._curve.function(x, torch), self._curve.derivative(x, torch)
        excess = torch.where(left, torch.log((y / f).abs()), (y - f) / y_min)  # of d(x)
        per_slope = torch.where(left, -f, -y_min)  # d' is f' divided by it
        beyond = (excess > 0) == left
        self._low, self._high = torch.where(beyond, x, self._low), torch.where(beyond, self._high, x)
        r = (self._depth + excess).clamp(min=0).sqrt()
        newton = x - 2 * r * excess * per_slope / ((r + self._v) * slope)
        within = (newton >= self._low) & (newton <= self._high)
        moved = torch.where(within, newton, self._low / 2 + self._high / 2)
        self.x = torch.where(self._known, x, moved)


@once
def _start(curve: Curve) -> tuple[float, float]:
    """Where a search starts: dx/dv at the minimum, and what v^2 is multiplied with to meet the left branch's end."""
    x = torch.linspace(FURTHEST_LEFT / curve.scale, curve.x_min, 1 << 11, dtype=torch.float64)
    y = curve.function(x, torch)
    end = int((y > -torch.finfo(y.dtype).smallest_normal).sum())
    v = math.sqrt(-math.log(float(y[end]) / curve.y_min))
    unit = math.sqrt(-2 * curve.y_min / float(curve.second_derivative(x[-1], torch)))
    return unit, (curve.x_min - float(x[end]) - unit * v) / v**2


@once
def _steps(curve: Curve) -> int:
    """How many steps a search on this curve takes, tried from the minimum to the far ends of both branches."""
    reach = torch.logspace(-9, math.log10(-FURTHEST_LEFT), 500, dtype=torch.float64) / curve.scale
    x = torch.cat([curve.x_min - reach, curve.x_min + reach])
    x = x[curve.function(x, torch).abs() >= torch.finfo(x.dtype).smallest_normal]
    search = _Search(curve, curve.function(x, torch), x < curve.x_min)
    for number in range(1, _MOST_STEPS + 1):
        x = search.x
        search.step()
        moved, y, slope = (search.x - x).abs(), curve.function(x, torch), curve.derivative(x, torch)
        if bool(((moved <= _SETTLED * x.abs()) | (moved * slope.abs() <= _SETTLED * y.abs())).all()):
            return number
    raise CurveError(f"{curve.name}: its inputs cannot be found from its outputs in {_MOST_STEPS} steps")


def derivative_from_output(curve: Curve, y: Tensor, left: Tensor) -> Tensor:
    """f'(x) of the x that ``inverse`` finds; 1 far out, where formulas in x may overflow."""
    if isinstance(curve.decoder, ClosedForm):
        return curve.decoder.slope(y, left).to(y.dtype)
    x = inverse(curve, y, left)
    return torch.where(y > _STRAIGHT / curve.scale, 1.0, curve.derivative(x, torch))
