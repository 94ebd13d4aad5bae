"""The decode of float32 outputs, on every device: polynomials in an unfolded variable.

One routine per backend serves every curve. With

    d = max((y - y_min_high) - y_min_low, least),        in essence y - y_min,

the decode unfolds both singularities of the inverse into one variable,

    v = sqrt(d)                       on the right branch,
    v = sqrt(-log(1 - d / -y_min))    on the left branch,

clamps it to ``limits``, maps it to u = v * scale + shift in [-1, 1] on its piece, and evaluates that
piece's polynomial p(u). The derivative is p(u) on the right branch and y * p(u) on the left.
Piece 0 is the left branch; pieces 1, 2, 3 are the right branch below, between and above ``breaks``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves import Curve, get
from optiacts.decoders.fitted import fitted, remembered

PIECES = 4
DEGREE = 8


@dataclass(frozen=True)
class Coefficients:
    """Everything a backend needs to decode one curve in float32.

    All values that enter float32 arithmetic are exact float32 numbers. ``y_min_high + y_min_low`` is y_min to
    twice that precision plus about half a unit in the last place, and ``least`` is the smallest d: with these
    two, the decode of an output near the minimum is the middle of f' over the inputs that it stands for.
    """

    y_min_high: float
    y_min_low: float
    least: float
    limits: tuple[float, float]  # largest v on the left, on the right
    breaks: tuple[float, float]  # in v, on the right branch
    scale: tuple[float, ...]  # [piece]
    shift: tuple[float, ...]  # [piece]
    polynomials: tuple[tuple[float, ...], ...]  # [power][piece], lowest power first
    errors: tuple[float, ...]  # [piece]: largest |decode - f'| in exact arithmetic


@remembered
def coefficients(curve: Curve) -> Coefficients:
    """The generated decoder of ``curve``."""
    return Coefficients(**fitted(curve, "polynomials"))


def decode_float32(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    """f'(x) from the output and the branch."""
    c = coefficients(curve)
    above = ((y - c.y_min_high) - c.y_min_low).clamp(min=c.least)
    part = (above * (-1 / curve.y_min)).clamp(max=1 - 2.0**-24)
    v = torch.where(left, -torch.log1p(-part), above).sqrt_()
    v = torch.where(left, v.clamp(max=c.limits[0]), v.clamp(max=c.limits[1]))
    piece = torch.where(left, 0, 1 + (v > c.breaks[0]).int() + (v > c.breaks[1]).int())
    scale, shift, *polynomials = _on_device(curve.name, y.device)
    u = v * scale[piece] + shift[piece]
    slope = polynomials[-1][piece]
    for row in reversed(polynomials[:-1]):
        slope = slope * u + row[piece]
    return torch.where(left, slope * y, slope)


@once
def _on_device(name: str, device: torch.device) -> tuple[Tensor, ...]:
    """scale, shift and the polynomials of each piece, ready for lookup by piece."""
    c = coefficients(get(name))
    rows = (c.scale, c.shift, *c.polynomials)
    return tuple(torch.tensor(row, dtype=torch.float32, device=device) for row in rows)
