"""A CPU's decode of float32 outputs of a curve with one minimum: a straight line on each of many short pieces.

With AVX-512 the coefficients of fewer and longer pieces fit into registers: see ``registers.py``.

The slope as a function of the output is smooth but at the minimum and, on the left branch, at 0. From the nearer of
the two on, pieces grow with the distance:

    near = (y - high) - low,    rest = -y on the left branch,    d = the smaller of the two,

and the leading bits of the float32 pattern of d, its exponent and 8 more, are the number of the piece. On it the
slope is ``first + second * d``, the line that errs least there. The first piece holds for all smaller d.

256 pieces to each power of 2 make f' wrong by 1.1e-6 at most where the output tells it. A table has 640 KB, of which
data within a few powers of 2 touch a few KB. It is made in some 0.1 s, once per process.

A norm before the activation needs the input as well (see ``decoders/preimage.py``). It is read from lines on the same
pieces: x itself on the left branch, and x / y on the right one, which has no zero. Left outputs tell it down to the
smallest normal number, so these tables start there, and have 2 MB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves import Curve, Unimodal, get
from optiacts.decoders.inverse import derivative_from_output, inverse
from optiacts.decoders.scaling import BIAS, LEAST, single

_HIGHEST = 40  # of the exponents of d that have pieces
_LOWEST = -64
_LOWEST_NORMAL = -126
_BITS = 8  # of the mantissa
SHIFT = 23 - _BITS
MOST = 2.0**_HIGHEST * (1 - 2.0**-24)  # the largest d

Function = Callable[[Curve, Tensor, bool], Tensor]  # of outputs in float64, and the branch


@dataclass(frozen=True)
class Lines:
    """Everything the kernels need. ``rows`` is float32 [section, piece, (first, second)].

    The sections: from the minimum to the right, from there to the left, from 0 to the left. ``first`` is the number
    of the first piece. With the input, rows end in (first, second) of f' and (first, second) of the input.
    """

    high: float
    low: float
    first: int
    rows: Tensor

    @property
    def count(self) -> int:
        """How many pieces a section has."""
        return self.rows.shape[1]


@once
def lines(name: str) -> Lines:
    """f' of the curve ``name``."""
    return _made(get(name), _LOWEST, (slope_of_output,))


@once
def lines_with_input(name: str) -> Lines:
    """f', and the input: x on the left branch, x / y on the right one."""
    return _made(get(name), _LOWEST_NORMAL, (slope_of_output, input_of_output))


def _made(curve: Curve, lowest: int, functions: tuple[Function, ...]) -> Lines:
    least = LEAST * half_unit(curve)
    columns = []
    for function in functions:
        right, left = (_from_minimum(curve, function, lowest, least, branch) for branch in (False, True))
        columns.append(torch.stack([right, left, _from_zero(curve, function, lowest)]))
    return Lines(*minimum(curve), _first(lowest), torch.cat(columns, dim=-1))


def minimum(curve: Curve) -> tuple[float, float]:
    """``high`` and ``low``: the minimum of the output to twice the precision of float32, and BIAS more."""
    high = single(curve.y_min)
    return high, single(curve.y_min - high + BIAS * half_unit(curve))


def half_unit(curve: Curve) -> float:
    """Half a unit in the last place of the minimum."""
    return float(2.0 ** (math.frexp(curve.y_min)[1] - 25))


def _first(lowest: int) -> int:
    return ((127 + lowest) << _BITS) - 1


def _from_minimum(curve: Curve, function: Function, lowest: int, least: float, left: bool) -> Tensor:
    """Distances that cannot be told from 0 count as ``least``."""
    most = -0.9 * curve.y_min if left else math.inf
    rows = _fitted(lambda d: _at(function, curve, curve.y_min + d.clamp(least, most), left), lowest)
    rows[0] = torch.stack([rows[1, 0], rows.new_zeros(())])
    return rows


def _from_zero(curve: Curve, function: Function, lowest: int) -> Tensor:
    """Outputs smaller than the pieces: the slope is read from a line through 0, the input is the furthest one."""
    rows = _fitted(lambda d: _at(function, curve, -d.clamp(max=-0.9 * curve.y_min), True), lowest)
    smallest = rows[1, 0] + rows[1, 1] * 2.0**lowest
    nothing = rows.new_zeros(())
    rows[0] = torch.stack([nothing, smallest * 2.0**-lowest] if function is slope_of_output else [smallest, nothing])
    return rows


def _at(function: Function, curve: Curve, y: Tensor, left: bool) -> Tensor:
    """``function`` of many outputs, of which equal ones are asked for once: beyond where it matters all are."""
    distinct, number = torch.unique(y, return_inverse=True)
    return function(curve, distinct, left)[number]


def slope_of_output(curve: Curve, y: Tensor, left: bool) -> Tensor:
    """f'. Of a curve that becomes constant far right, as if it went on: the kernels' caller looks for the end."""
    decoder = curve.decoder
    assert isinstance(decoder, Unimodal)
    name, k = decoder.scaled or (curve.name, 1.0)
    return derivative_from_output(get(name), k * y, torch.full(y.shape, left))


def input_of_output(curve: Curve, y: Tensor, left: bool) -> Tensor:
    """x, or x / y on the right branch, where 0 counts as the number next to it."""
    y = torch.where(y == 0, 2.0**_LOWEST_NORMAL, y)
    x = inverse(curve, y, torch.full(y.shape, left))
    return x if left else x / y


def _fitted(function: Callable[[Tensor], Tensor], lowest: int) -> Tensor:
    """The lines of one section; the first piece is left to the caller.

    A line through the ends of a piece, moved by half of what it misses in the middle, errs least if the slope bends
    evenly there. ``first`` makes up for the rounding of ``second``.
    """
    numbers = torch.arange(_first(lowest) + 1, _first(_HIGHEST) + 2, dtype=torch.int32)
    ends = (numbers << SHIFT).view(torch.float32).double()
    start, end = ends[:-1], ends[1:]
    values, middle = function(ends), function((start + end) / 2)
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
    piece = ((d.view(torch.int32) >> SHIFT) - made.first).clamp(0, made.count - 1)
    section = left.int() + (rest < near).int()
    first, second = made.rows.view(-1, 2)[section * made.count + piece].unbind(-1)
    return first + second * d
