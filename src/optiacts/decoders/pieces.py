"""The decode of float32 outputs in pieces, for curves of any shape: a polynomial of degree 3 on each.

On a branch, the slope as a function of the output is smooth but near its ends: the minimum (or 0, or a limit), and
the limit at the other side (or where the slope jumps). From the nearer end on, pieces grow with the distance:

    near = ((y - high) - low) * sign,    rest = (end - y) * sign,    d = the smaller of the two,

and the leading bits of the float32 pattern of d, its exponent and a few more, are the number of the piece. The other
bits, as a fraction t in [0, 1), are what its polynomial is in. The first piece is constant and holds for all smaller
d, negative ones too: what it says at the far end holds for all outputs beyond. The last one holds for all larger d.

Degree 3 and 16 pieces to a power of 2 make the slope of softplus, where the pieces are widest, wrong by 7e-8, little
more than a rounding. The table of a curve has 197 KB, of which data within a few powers of 2 touch a few.

A curve without side bits may have a left branch as well: the outputs up to ``split``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves import ClosedForm, Curve, Regions, get
from optiacts.decoders.fitted import remembered

DEGREE = 3
_LOWEST, _HIGHEST = -64, 128  # the exponents of d that have pieces
_BITS = 4  # of the mantissa: 16 pieces to each power of 2
SHIFT = 23 - _BITS
FIRST = ((127 + _LOWEST) << _BITS) - 1
COUNT = ((_HIGHEST - _LOWEST) << _BITS) + 2


@dataclass(frozen=True)
class Pieces:
    """Everything a backend needs. ``rows`` is float32 [branch, end, piece, power], lowest power first."""

    high: tuple[float, float]
    low: tuple[float, float]
    sign: tuple[float, float]
    end: tuple[float, float]
    split: float
    rows: Tensor


@remembered
def pieces(curve: Curve) -> Pieces:
    """Those of a curve whose decoder says where its branches start and end."""
    return _pieces(curve.name)


def has_pieces(curve: Curve) -> bool:
    """Whether ``curve`` can be read so."""
    return isinstance(curve.decoder, ClosedForm) and curve.decoder.regions is not None


@once
def _pieces(name: str) -> Pieces:
    form = get(name).decoder
    assert isinstance(form, ClosedForm) and form.regions is not None
    regions, slope = form.regions, form.slope
    high = tuple(_single(start) for start in regions.start)
    rows = [_rows(regions, slope, left, far) for left in (0, 1) for far in (False, True)]
    return Pieces(
        high=(high[0], high[1]),
        low=(_single(regions.start[0] - high[0]), _single(regions.start[1] - high[1])),
        sign=regions.sign,
        end=regions.end,
        split=regions.split,
        rows=torch.stack(rows).reshape(2, 2, -1, DEGREE + 1).float(),
    )


def _rows(regions: Regions, slope: Callable[[Tensor, Tensor], Tensor], left: int, far: bool) -> Tensor:
    """The polynomials at one end of one branch: those through four Chebyshev nodes of each piece."""
    last = FIRST + COUNT - 1
    if far and math.isinf(regions.end[left]):
        return torch.zeros(COUNT, DEGREE + 1, dtype=torch.float64)
    starts = (torch.arange(FIRST + 1, last, dtype=torch.int32) << SHIFT).view(torch.float32).double()
    width = torch.ldexp(torch.ones_like(starts), torch.frexp(starts)[1] - 1 - _BITS)
    nodes = (1 - torch.cos((torch.arange(DEGREE + 1, dtype=torch.float64) + 0.5) * math.pi / (DEGREE + 1))) / 2
    distance = starts.unsqueeze(-1) + width.unsqueeze(-1) * nodes
    values = _at(regions, slope, distance, left, far)
    powers = torch.linalg.solve(nodes.unsqueeze(-1) ** torch.arange(DEGREE + 1), values.T).T
    ends = torch.zeros(2, DEGREE + 1, dtype=torch.float64)
    ends[0, 0] = _at(regions, slope, torch.tensor(0.0 if far else starts[0].item() / 4), left, far)
    ends[1, 0] = values[-1, -1]
    return torch.cat([ends[:1], powers, ends[1:]])


def _at(
    regions: Regions, slope: Callable[[Tensor, Tensor], Tensor], distance: Tensor, left: int, far: bool
) -> Tensor:
    """The slope at a distance from an end; it is asked for up to the middle of the branch, and a piece more."""
    start, sign, end = regions.start[left], regions.sign[left], regions.end[left]
    distance = distance.double().clamp(max=0.9 * abs(end - start))
    y = end - sign * distance if far else start + sign * distance
    return slope(y, torch.full(y.shape, bool(left))).double()


def decode_in_pieces(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    """f'(x) from float32 outputs and the branch, in plain torch: what the kernels are measured by."""
    p = pieces(curve)
    branch = (left if curve.decoder.side_bits else y <= p.split).int()
    high, low, sign, end, rows = _on_device(curve.base or curve.name, y.device)
    near = ((y - high[branch]) - low[branch]) * sign[branch]
    rest = (end[branch] - y) * sign[branch]
    pattern = torch.where(rest < near, rest, near).view(torch.int32)
    number = ((pattern >> SHIFT) - FIRST).clamp(0, COUNT - 1)
    t = (pattern & ((1 << SHIFT) - 1)).to(torch.float32) * 2.0**-SHIFT
    at = (2 * branch + (rest < near).int()) * COUNT + number
    value = rows[3][at]
    for power in (2, 1, 0):
        value = value * t + rows[power][at]
    return torch.where(y.isnan(), y, value)


@once
def _on_device(name: str, device: torch.device) -> tuple[Tensor, ...]:
    p = pieces(get(name))
    numbers = (torch.tensor(pair, dtype=torch.float32) for pair in (p.high, p.low, p.sign, p.end))
    return tuple(t.to(device) for t in (*numbers, p.rows.reshape(-1, DEGREE + 1).T.contiguous()))


def _single(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
