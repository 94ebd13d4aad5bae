"""The decodes (y, side bit) -> f'(x) and -> x of a tile, generic over curves: their coefficients are constants.

That of a curve in closed form is an expression of its own, in ``y``, ``left`` and ``most``, the largest number of the
output's dtype, with ``tl`` and the functions of ``_NAMES``. Such a curve has no side bits: left are outputs of 0.

``slope``, ``valley`` and ``preimage`` make the functions that kernels call: the generic ones with a curve's numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from optiacts.backends.triton.elementary import expm1, like, log1p, log2_approximate, where
from optiacts.backends.triton.written import written
from optiacts.curves import ClosedForm, Curve
from optiacts.decoders.fitted import remembered
from optiacts.decoders.polynomials import coefficients
from optiacts.decoders.preimage import SMALLEST, preimage_coefficients, smallest_share
from optiacts.decoders.short import short_decoder
from optiacts.decoders.valley import polynomials

ALMOST_ONE = tl.constexpr(1 - 2.0**-24)
# -log(1 - p) / p for p up to a half, relatively good to 4e-8
LOG1P = (1.0, 0.499993742, 0.333662003, 0.243437439, 0.264547586, -0.181571648, 1.20501387, -1.63021171, 1.40795672)
LN_2 = tl.constexpr(math.log(2.0))


@remembered
def slope(curve: Curve, dtype: torch.dtype, vendor: str) -> Any:
    """The function ``slope(y, left)``: f'(x), of outputs of ``dtype`` on the branch that ``left`` tells."""
    name = f"slope of {curve.name} in {dtype}"
    if isinstance(curve.decoder, ClosedForm):
        expression = (curve.decoder.triton or "").replace("most", repr(torch.finfo(dtype).max))
        return written(name, "y, left", f"return {expression}", _NAMES)
    if dtype is not torch.float32:
        s = short_decoder(curve, dtype)
        numbers: tuple[Any, ...] = (
            (s.scale, s.smallest, s.largest),
            (s.y_min, s.least, s.most),
            s.envelope,
            s.left,
            s.right,
            vendor,
        )
        return written(name, "y, left", f"return short(y, left, {_text(numbers)})", {"short": _decode_short})
    c = coefficients(curve)
    pieces = tuple((c.scale[i], c.shift[i], tuple(row[i] for row in c.polynomials)) for i in range(4))
    numbers = ((c.y_min_high, c.y_min_low, c.least), -1 / curve.y_min, c.limits, c.breaks, pieces)
    return written(name, "y, left", f"return float32(y, left, {_text(numbers)})", {"float32": _decode_float32})


@remembered
def valley(curve: Curve, dtype: torch.dtype) -> Any:
    """The function ``valley(gate)``: act(gate) and f'(gate) of gates in the valley, see decoders/valley.py."""
    around = polynomials(curve, dtype)
    numbers = _text((around.centre, around.output, around.slope))
    return written(
        f"valley of {curve.name} in {dtype}", "gate", f"return valley(gate, {numbers})", {"valley": _valley}
    )


@remembered
def preimage(curve: Curve, dtype: torch.dtype, vendor: str) -> Any:
    """The function ``preimage(y, left)``: the input itself, from outputs of ``dtype``; see decoders/preimage.py."""
    if curve.triton_input is not None:
        body = f"lowest = {math.log(smallest_share(dtype))!r}\nreturn {curve.triton_input}"
        return written(f"input of {curve.name} in {dtype}", "y, left", body, {"clamp": clamp})
    short = dtype is not torch.float32
    c = preimage_coefficients(curve, "short_preimage" if short else "gpu_preimage")
    pieces = tuple((c.scale[i], c.shift[i], tuple(row[i] for row in c.polynomials)) for i in range(len(c.scale)))
    left, right = pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :]
    breaks = c.breaks or (0.0, 0.0)
    numbers = ((c.y_min_high, c.y_min_low), 1 / curve.y_min, -c.rate / math.log(2), SMALLEST)
    text = _text((*numbers, c.limits, breaks, left, right, LOG1P, vendor))
    return written(
        f"input of {curve.name} in {dtype}", "y, left", f"return found(y, left, {text})", {"found": _input}
    )


def _text(numbers: tuple[Any, ...]) -> str:
    """Finite numbers, tuples of them and names as arguments in a call."""
    return ", ".join(map(repr, numbers))


@triton.jit
def _decode_short(
    y,
    left,
    FRACTION: tl.constexpr,
    ABOVE: tl.constexpr,
    ENVELOPE: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    VENDOR: tl.constexpr,
):
    """The decode described in decoders/short.py. Two polynomials cost less than choosing each coefficient."""
    fraction = clamp(y * FRACTION[0], FRACTION[1], FRACTION[2])
    above = clamp(y - ABOVE[0], ABOVE[1], ABOVE[2])
    v = tl.sqrt(tl.where(left, -log2_approximate(fraction, VENDOR), above))
    fall = tl.exp2(above * _polynomial(above, ENVELOPE))
    return tl.where(left, y * _polynomial(v, LEFT), tl.fma(fall, _polynomial(v, RIGHT), like(v, 1.0)))


@triton.jit
def _decode_float32(
    y,
    left,
    Y_MIN: tl.constexpr,
    PART: tl.constexpr,
    LIMITS: tl.constexpr,
    BREAKS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """The decode described in decoders/polynomials.py."""
    above = clamp((y - Y_MIN[0]) - Y_MIN[1], Y_MIN[2], float("inf"))
    part = tl.minimum(above * PART, ALMOST_ONE)
    v = tl.sqrt(tl.where(left, -log1p(-part), above))
    on_left = _polynomial(tl.fma(tl.minimum(v, LIMITS[0]), like(v, PIECES[0][0]), PIECES[0][1]), PIECES[0][2])
    v = clamp(v, 0.0, LIMITS[1])
    second, third = v > BREAKS[0], v > BREAKS[1]
    scale = _of_piece(second, third, PIECES[1][0], PIECES[2][0], PIECES[3][0])
    shift = _of_piece(second, third, PIECES[1][1], PIECES[2][1], PIECES[3][1])
    u = tl.fma(v, scale, shift)
    on_right = tl.zeros_like(u)
    for power in tl.static_range(len(PIECES[1][2]) - 1, -1, -1):
        coefficient = _of_piece(second, third, PIECES[1][2][power], PIECES[2][2][power], PIECES[3][2][power])
        on_right = tl.fma(on_right, u, coefficient)
    return tl.where(left, y * on_left, on_right)


@triton.jit
def _input(
    y,
    left,
    Y_MIN: tl.constexpr,
    PER_OUTPUT: tl.constexpr,
    RATE: tl.constexpr,
    SMALLEST: tl.constexpr,
    LIMITS: tl.constexpr,
    BREAKS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    LOG1P: tl.constexpr,
    VENDOR: tl.constexpr,
):
    """The input from the output and the branch, as decoders/preimage.py describes it."""
    above = clamp((y - Y_MIN[0]) - Y_MIN[1], 0.0, float("inf"))
    ratio = tl.maximum(y * PER_OUTPUT, SMALLEST)
    depth = log2_approximate(ratio, VENDOR) * -LN_2
    if len(LEFT) > 1:  # in float32: near the minimum a logarithm cancels
        part = tl.minimum(above * -PER_OUTPUT, 0.5)
        depth = tl.where(ratio > 0.5, part * _polynomial(part, LOG1P), depth)
    v = tl.sqrt(tl.where(left, tl.maximum(depth, 0.0), above))
    on_left = _in_pieces(tl.minimum(v, LIMITS[0]), BREAKS[0], LEFT)
    on_right = tl.fma(tl.exp2(above * RATE), _in_pieces(tl.minimum(v, LIMITS[1]), BREAKS[1], RIGHT), y)
    return tl.where(left, on_left, on_right)


@triton.jit
def _in_pieces(v, BREAK: tl.constexpr, PIECES: tl.constexpr):
    """The polynomial of the piece that ``v`` lies in: the only one or one of two."""
    if len(PIECES) == 1:
        return _polynomial(tl.fma(v, like(v, PIECES[0][0]), PIECES[0][1]), PIECES[0][2])
    else:
        second = v > BREAK
        u = tl.fma(v, _of_two(second, PIECES[0][0], PIECES[1][0]), _of_two(second, PIECES[0][1], PIECES[1][1]))
        value = tl.zeros_like(u)
        for power in tl.static_range(len(PIECES[0][2]) - 1, -1, -1):
            value = tl.fma(value, u, _of_two(second, PIECES[0][2][power], PIECES[1][2][power]))
        return value


@triton.jit
def _of_two(second, FIRST: tl.constexpr, SECOND: tl.constexpr):
    return tl.where(second, SECOND, FIRST)


@triton.jit
def _valley(gate, CENTRE: tl.constexpr, OUTPUT: tl.constexpr, SLOPE: tl.constexpr):
    t = gate - CENTRE
    return _polynomial(t, OUTPUT), _polynomial(t, SLOPE)


@triton.jit
def _of_piece(second, third, FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr):
    return tl.where(third, THIRD, tl.where(second, SECOND, FIRST))


@triton.jit
def _polynomial(v, COEFFICIENTS: tl.constexpr):
    """The polynomial in ``v``, lowest power first, by Horner's rule."""
    value = like(v, COEFFICIENTS[len(COEFFICIENTS) - 1])
    for power in tl.static_range(len(COEFFICIENTS) - 2, -1, -1):
        value = tl.fma(value, v, like(v, COEFFICIENTS[power]))
    return value


@triton.jit
def clamp(v, LOW: tl.constexpr, HIGH: tl.constexpr):
    """``v`` between the two numbers; NaN stays NaN."""
    return tl.clamp(v, LOW, HIGH, propagate_nan=tl.PropagateNan.ALL)


_NAMES = {"clamp": clamp, "expm1": expm1, "like": like, "where": where}
