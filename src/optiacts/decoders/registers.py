"""The decode of float32 outputs of a curve with one minimum, for AVX-512: all coefficients stand in registers.

Two instructions choose among 32 numbers in registers, where a table in memory takes some 40 to read 16 rows of it. So
there are few pieces, of degree 4. As in ``polynomials.py`` a root unfolds the minimum,

    d = max((y - high) - low, least),    s = sqrt(min(d, most)) * per_branch,    k = s to the nearest whole number,

and the slope is the polynomial number k of s - k: 16 pieces on the right branch, of which the last one ends where the
slope is 1, and 16 on the left one, down to outputs of ``border``, a power of 2. From there on to 0 the slope is y
times a polynomial of the mantissa of y, one for each power of 2, and the last one for all smaller outputs.

Polynomials through Chebyshev's points err little more than the best ones. f' is wrong by 8e-7 at most where the
output tells it, as by the lines of ``lines.py``, and they are made in some hundredths of a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves import Curve, Unimodal, get
from optiacts.decoders.lines import Function, half_unit, input_of_output, minimum, slope_of_output
from optiacts.decoders.scaling import LEAST, single

DEGREE, INPUT_DEGREE = 4, 6
PIECES = 16  # of a branch around the minimum
OCTAVES = 32
_LAST = PIECES - 0.5 - 2.0**-8  # the largest s: pieces reach half a step to both sides
_STRAIGHT = 2e-7  # how near to 1 the slope counts as 1
_FURTHEST = 256.0  # where it must have come so near
_BORDER = 8  # |y_min| is so many borders, or more
_MOST_ERROR = 1e-6  # half of what f' may be wrong by: the rest is for roundings


@dataclass(frozen=True)
class Near:
    """What is around the minimum. Tables are float32 [power, piece], with the right branch's pieces first."""

    least: float
    most: float
    per_branch: tuple[float, float]  # of the right one, of the left one
    slope: Tensor


@dataclass(frozen=True)
class Registers:
    """Everything that the kernels of activations need.

    ``far`` has at place i the power of 2 whose biased exponent is i modulo 32. ``lowest`` is the smallest of these
    exponents, with the sign bit of a left output before it.
    """

    near: Near
    border: float
    lowest: int
    far: Tensor


@dataclass(frozen=True)
class Input:
    """What a norm before it needs besides: x / y on the right branch, and x on the left one, up to ``border``."""

    border: float
    input: Tensor


@once
def registers(name: str) -> Registers | None:
    """f' of the curve ``name``; None if it cannot be had so."""
    curve = get(name)
    near = _near(curve)
    if near is None:
        return None
    top = _top(curve)
    octaves = torch.arange(top - OCTAVES, top)
    tail, error = _towards_zero(curve, octaves)
    if error > _MOST_ERROR:
        return None
    far = torch.empty_like(tail)
    far[(octaves + 127) % OCTAVES] = tail
    return Registers(near, -(2.0**top), (1 << 8) + 127 + top - OCTAVES, _by_power(far))


@once
def input_registers(name: str) -> tuple[Near, Input] | None:
    """The input as well."""
    curve = get(name)
    near = _near(curve)
    if near is None:
        return None
    right, left = (
        _around_minimum(input_of_output, curve, near.per_branch, branch, INPUT_DEGREE) for branch in (False, True)
    )
    if max(float(right[1].max()), float(left[1][:-1].max())) > _MOST_ERROR:
        return None
    border = curve.y_min + ((PIECES - 1.5) / near.per_branch[1]) ** 2  # the last piece is too near to 0
    return near, Input(single(border), _by_power(torch.cat([right[0], left[0]])))


def _near(curve: Curve) -> Near | None:
    most = _reach(curve)
    if most is None:
        return None
    per_branch = single(_LAST / math.sqrt(most)), single(_LAST / math.sqrt(-(2.0 ** _top(curve)) - curve.y_min))
    right, left = (_around_minimum(slope_of_output, curve, per_branch, branch, DEGREE) for branch in (False, True))
    if max(float(error.max()) for _, error in (right, left)) > _MOST_ERROR:
        return None
    least = single(LEAST * half_unit(curve))
    return Near(least, single(most), per_branch, _by_power(torch.cat([right[0], left[0]])))


def _top(curve: Curve) -> int:
    """The exponent of the border."""
    return math.floor(math.log2(-curve.y_min / _BORDER))


def _by_power(table: Tensor) -> Tensor:
    return table.t().float().contiguous()


def _reach(curve: Curve) -> float | None:
    """The distance from the minimum from which on the slope counts as 1; None if it never does."""
    assert isinstance(curve.decoder, Unimodal)
    name, k = curve.decoder.scaled or (curve.name, 1.0)
    base = get(name)
    x = torch.linspace(base.x_min, _FURTHEST, 1 << 14, dtype=torch.float64)
    last = int(((base.derivative(x, torch) - 1).abs() > _STRAIGHT).nonzero()[-1])
    if last + 1 == len(x):
        return None
    return (float(base.function(x[last + 1], torch)) - base.y_min) / k


def _around_minimum(
    function: Function, curve: Curve, per_branch: tuple[float, float], left: bool, degree: int
) -> tuple[Tensor, Tensor]:
    """The polynomials of a branch in s - k, and how wrong they are."""
    k = torch.arange(PIECES, dtype=torch.float64)
    start, end = (k - 0.5).clamp(min=0.0), (k + 0.5).clamp(max=_LAST)  # no root is negative

    def at(s: Tensor) -> Tensor:
        return function(curve, curve.y_min + (s / per_branch[left]).square(), left)

    return _fitted(at, start, end, k, degree)


def _towards_zero(curve: Curve, octaves: Tensor) -> tuple[Tensor, float]:
    """The polynomials of slope / y in the mantissa, and how wrong the slope is."""
    unit, one = 2.0 ** octaves.double()[:, None], torch.ones(len(octaves), dtype=torch.float64)

    def ratio(mantissa: Tensor) -> Tensor:
        y = -mantissa * unit
        return slope_of_output(curve, y, left=True) / y

    table, error = _fitted(ratio, one, 2 * one, 0 * one, DEGREE)
    return table, float((error * 2 * unit).max())


def _fitted(
    function: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, origin: Tensor, degree: int
) -> tuple[Tensor, Tensor]:
    """Polynomials in the distance from ``origin`` that meet ``function`` at Chebyshev's points, [piece, power].

    And how far they are from it where they are furthest, between these points and at the ends.
    """

    def at(number: int, shift: float) -> tuple[Tensor, Tensor]:
        angles = math.pi * (torch.arange(number, dtype=torch.float64) + shift) / (degree + 1)
        points = ((start + end) / 2)[:, None] + ((end - start) / 2)[:, None] * angles.cos()
        return (points - origin[:, None])[..., None] ** torch.arange(degree + 1), function(points)

    table = torch.linalg.solve(*at(degree + 1, 0.5))
    powers, wanted = at(degree + 2, 0.0)
    return table, ((powers @ table[..., None]).squeeze(-1) - wanted).abs()


def decode_in_registers(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    """f'(x) from float32 outputs and the branch, in plain torch: what the kernels are measured by."""
    made, (high, low) = registers(curve.name), minimum(curve)
    assert made is not None
    near = made.near
    root = ((y - high) - low).clamp(near.least, near.most).sqrt()
    s = root * torch.where(left, near.per_branch[1], near.per_branch[0])
    piece = s.nan_to_num().round().clamp(max=PIECES - 1)  # beyond: left outputs that are read otherwise
    found = _value(near.slope, s - piece, piece.int() + PIECES * left)
    pattern = y.view(torch.int32)
    octave = ((pattern >> 23) & 0x1FF).clamp(min=made.lowest) % OCTAVES
    mantissa = (pattern & 0x7FFFFF | 0x3F800000).view(torch.float32)
    return torch.where(left & (y > made.border), y * _value(made.far, mantissa, octave), found)


def _value(table: Tensor, u: Tensor, number: Tensor) -> Tensor:
    value = table[-1][number]
    for row in table.flip(0)[1:]:
        value = value * u + row[number]
    return value
