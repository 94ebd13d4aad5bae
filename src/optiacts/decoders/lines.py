"""The CPU's decode of float32 outputs of a curve with one minimum: a straight line on each of many short pieces.

The slope as a function of the output is smooth but at the minimum and, on the left branch, at 0. From the nearer of
the two on, pieces grow with the distance:

    near = (y - high) - low,    rest = -y on the left branch,    d = the smaller of the two,

and the leading bits of the float32 pattern of d, its exponent and 8 more, are the number of the piece. On it the
slope is ``first + second * d``, the line that errs least there. The first piece holds for all smaller d.

256 pieces to each power of 2 make f' wrong by 1.1e-6 at most where the output tells it. A table has 640 KB, of which
data within a few powers of 2 touch a few KB. It is made in some 0.1 s, once per process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves import Curve, Unimodal, get
from optiacts.decoders.inverse import derivative_from_output
from optiacts.decoders.scaling import BIAS, LEAST, single

_LOWEST, _HIGHEST = -64, 40  # the exponents of d that have pieces
_BITS = 8  # of the mantissa
SHIFT = 23 - _BITS
FIRST = ((127 + _LOWEST) << _BITS) - 1
COUNT = ((_HIGHEST - _LOWEST) << _BITS) + 1
MOST = 2.0**_HIGHEST * (1 - 2.0**-24)  # the largest d


@dataclass(frozen=True)
class Lines:
    """Everything the kernels need. ``rows`` is float32 [section, piece, (first, second)].

    The sections: from the minimum to the right, from there to the left, from 0 to the left.
    """

    high: float
    low: float
    rows: Tensor


@once
def lines(name: str) -> Lines:
    """Those of the curve ``name``."""
    curve = get(name)
    high, half_unit = single(curve.y_min), 2.0 ** (math.frexp(curve.y_min)[1] - 25)
    least = LEAST * half_unit
    sections = [_from_minimum(curve, least, left=False), _from_minimum(curve, least, left=True), _from_zero(curve)]
    return Lines(high, single(curve.y_min - high + BIAS * half_unit), torch.stack(sections))


def _from_minimum(curve: Curve, least: float, left: bool) -> Tensor:
    """Distances that cannot be told from 0 count as ``least``."""
    most = -0.9 * curve.y_min if left else math.inf
    rows = _fitted(lambda d: _slope(curve, curve.y_min + d.clamp(least, most), left))
    rows[0] = torch.stack([rows[1, 0], rows.new_zeros(())])
    return rows


def _from_zero(curve: Curve) -> Tensor:
    """Outputs smaller than the pieces are read from a line through 0."""
    rows = _fitted(lambda d: _slope(curve, -d.clamp(max=-0.9 * curve.y_min), left=True))
    rows[0] = torch.stack([rows.new_zeros(()), rows[1, 0] * 2.0**-_LOWEST + rows[1, 1]])
    return rows


def _slope(curve: Curve, y: Tensor, left: bool) -> Tensor:
    """f' from many outputs, of which equal ones are asked for once: beyond where it matters all are.

    Of a curve that becomes constant far right, as if it went on: the kernels' caller looks for the end.
    """
    distinct, number = torch.unique(y, return_inverse=True)
    decoder = curve.decoder
    assert isinstance(decoder, Unimodal)
    name, k = decoder.scaled or (curve.name, 1.0)
    return derivative_from_output(get(name), k * distinct, torch.full(distinct.shape, left))[number]


def _fitted(slope: Callable[[Tensor], Tensor]) -> Tensor:
    """The lines of one section; the first piece is left to the caller.

    A line through the ends of a piece, moved by half of what it misses in the middle, errs least if the slope bends
    evenly there. ``first`` makes up for the rounding of ``second``.
    """
    ends = (torch.arange(FIRST + 1, FIRST + COUNT + 1, dtype=torch.int32) << SHIFT).view(torch.float32).double()
    start, end = ends[:-1], ends[1:]
    values, middle = slope(ends), slope((start + end) / 2)
    second = (values.diff() / (end - start)).float()
    chord = (values[:-1] + values[1:]) / 2
    first = (chord + middle) / 2 - second.double() * (start + end) / 2
    return torch.nn.functional.pad(torch.stack([first.float(), second], dim=-1), (0, 0, 1, 0))


def decode_in_lines(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    """f'(x) from float32 outputs and the branch, in plain torch: what the kernels are measured by."""
    made = lines(curve.name)
    near = (y - made.high) - made.low
    rest = torch.where(left, -y, math.inf)
    d = torch.minimum(near, rest).clamp(max=MOST)
    piece = ((d.view(torch.int32) >> SHIFT) - FIRST).clamp(0, COUNT - 1)
    section = left.int() + (rest < near).int()
    first, second = made.rows.view(-1, 2)[section * COUNT + piece].unbind(-1)
    return first + second * d
