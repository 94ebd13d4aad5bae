"""(output, branch) -> f'(x) and -> x in arithmetic alone: what a compiler is given to fuse with what stands around.

No tables, of which it would make gathers, and no numbers in tensors: coefficients are constants of the code. The
mathematics is what the kernels for GPUs have, described in short.py, polynomials.py, preimage.py and valley.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from optiacts.curves import ClosedForm, Curve
from optiacts.decoders.polynomials import coefficients
from optiacts.decoders.preimage import SMALLEST, furthest_in_closed_form, preimage_coefficients
from optiacts.decoders.short import short_decoder
from optiacts.decoders.valley import polynomials

_ALMOST_ONE = 1 - 2.0**-24


def slope(y: Tensor, left: Tensor, curve: Curve, dtype: torch.dtype) -> Tensor:
    """f'(x), float32, from outputs of ``dtype`` in float32 and the branch (bool)."""
    if isinstance(curve.decoder, ClosedForm):
        y = y.clamp(max=torch.finfo(dtype).max)  # what an output that has overflowed stands for
        return curve.decoder.slope(y, left).to(y.dtype)
    return _float32(y, left, curve) if dtype is torch.float32 else _short(y, left, curve, dtype)


def valley(gate: Tensor, curve: Curve, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """act(gate) and f'(gate), float32, of gates of ``dtype`` in the valley, in float32."""
    around = polynomials(curve, dtype)
    t = gate - around.centre
    return _polynomial(t, around.output), _polynomial(t, around.slope)


def preimage(y: Tensor, left: Tensor, curve: Curve, dtype: torch.dtype) -> Tensor:
    """The input, float32, from outputs of ``dtype`` in float32 and the branch (bool)."""
    if isinstance(curve.decoder, ClosedForm):
        return curve.decoder.inverse(y, left).to(y.dtype).clamp(min=furthest_in_closed_form(curve, dtype))
    c = preimage_coefficients(curve, "gpu_preimage" if dtype is torch.float32 else "short_preimage")
    above = ((y - c.y_min_high) - c.y_min_low).clamp(min=0)
    ratio = (y * (1 / curve.y_min)).clamp(min=SMALLEST)
    depth = -torch.log(ratio)
    if dtype is torch.float32:  # near the minimum a logarithm cancels
        part = (above * (-1 / curve.y_min)).clamp(max=0.5)
        depth = torch.where(ratio > 0.5, -torch.log1p(-part), depth)
    v = torch.where(left, depth.clamp(min=0), above).sqrt()
    pieces = list(zip(c.scale, c.shift, zip(*c.polynomials, strict=True), strict=True))
    half = len(pieces) // 2
    on_left = _in_pieces(v.clamp(max=c.limits[0]), c.breaks[: half - 1], pieces[:half])
    on_right = _in_pieces(v.clamp(max=c.limits[1]), c.breaks[half - 1 :], pieces[half:])
    return torch.where(left, on_left, torch.exp2(above * (-c.rate / math.log(2))) * on_right + y)


def _short(y: Tensor, left: Tensor, curve: Curve, dtype: torch.dtype) -> Tensor:
    s = short_decoder(curve, dtype)
    fraction = (y * s.scale).clamp(s.smallest, s.largest)
    above = (y - s.y_min).clamp(s.least, s.most)
    v = torch.where(left, -torch.log2(fraction), above).sqrt()
    fall = torch.exp2(above * _polynomial(above, s.envelope))
    return torch.where(left, y * _polynomial(v, s.left), 1.0 + fall * _polynomial(v, s.right))


def _float32(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    c = coefficients(curve)
    above = ((y - c.y_min_high) - c.y_min_low).clamp(min=c.least)
    part = (above * (-1 / curve.y_min)).clamp(max=_ALMOST_ONE)
    v = torch.where(left, -torch.log1p(-part), above).sqrt()
    first, *others = zip(c.scale, c.shift, zip(*c.polynomials, strict=True), strict=True)
    on_left = _in_pieces(v.clamp(max=c.limits[0]), (), [first])
    on_right = _in_pieces(v.clamp(max=c.limits[1]), c.breaks, others)
    return torch.where(left, y * on_left, on_right)


_Piece = tuple[float, float, tuple[float, ...]]  # scale and shift of the variable, and the polynomial in it


def _in_pieces(v: Tensor, breaks: Sequence[float], pieces: Sequence[_Piece]) -> Tensor:
    """The polynomial of the piece that ``v`` lies in: each coefficient is chosen, by as many comparisons."""
    beyond = [v > border for border in breaks]

    def of_piece(numbers: Sequence[float]) -> Tensor:
        chosen = torch.full_like(v, numbers[0])
        for further, number in zip(beyond, numbers[1:], strict=True):
            chosen = torch.where(further, number, chosen)
        return chosen

    scales, shifts, polynomials = zip(*pieces, strict=True)
    u = v * of_piece(scales) + of_piece(shifts)
    *lower, highest = map(of_piece, zip(*polynomials, strict=True))
    value = highest
    for coefficient in reversed(lower):
        value = value * u + coefficient
    return value


def _polynomial(v: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The polynomial in ``v``, lowest power first, by Horner's rule."""
    value = torch.full_like(v, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * v + coefficient
    return value
