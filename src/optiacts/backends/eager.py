"""The backend in plain torch operations: any device, any floating dtype; the others are measured by it.

float32 is decoded by the generated polynomials, bfloat16 and float16 by the exhaustive tables, float64 by
inverting the curve. The product with the incoming gradient is taken in float32 (float64) and rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.bits import pack, unpack
from optiacts.curves import Curve
from optiacts.curves.inverse import derivative_from_output
from optiacts.curves.table import decode_table, table_index
from optiacts.layouts import Order, permute

name = "eager"
dtypes = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot serve ``device``: it always can."""
    return None


def activation_forward(x: Tensor, curve: Curve, order: Order) -> tuple[Tensor, Tensor]:
    """PyTorch's own output, and the packed side bits."""
    return curve.forward(x), _side_bits(x, curve, order)


def activation_forward_(x: Tensor, curve: Curve, order: Order) -> Tensor:
    """Overwrites ``x`` with the output and returns the packed side bits."""
    bits = _side_bits(x, curve, order)
    curve.forward_(x)
    return bits


def _side_bits(x: Tensor, curve: Curve, order: Order) -> Tensor:
    return pack(curve.left(permute(x, order)))


def activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: Curve) -> Tensor:
    """``grad`` * f'(x), in the dtype of ``y``."""
    return (grad * decode(y, unpack(bits, y.shape), curve)).to(y.dtype)


def gated_forward(gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor, Tensor]:
    """h = s * up with s = act(gate), the slot and the packed bits.

    The slot holds s, or in the curve's valley gate, which gives s; and h / s gives up back. Only where h is no normal
    number (0, subnormal, overflowed, NaN) and up the larger factor does the slot hold up, and a bit says so. Where s
    and its derivative are both 0 the gradients are 0 whatever up is: there the slot holds s.
    """
    s = curve.forward(gate)
    h = s * up
    left = curve.left(gate)
    limits = torch.finfo(h.dtype)
    size = h.abs()
    normal = (size >= limits.tiny) & (size <= limits.max)
    holds_up = (up.abs() > s.abs()) & ~normal & ~(left & (s == 0))
    if curve.unimodal:
        itself = gate.to(s.dtype)
        s = torch.where(curve.in_valley(itself), itself, s)
    slot = torch.where(holds_up, up, s)
    planes = (left, holds_up) if curve.unimodal else (holds_up,)
    return h.contiguous(), slot.contiguous(), torch.cat([pack(plane) for plane in planes], dim=-1)


def gated_backward(
    grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, curve: Curve, grad_gate: Tensor, grad_up: Tensor
) -> None:
    """Writes grad * up * f'(gate) and grad * act(gate), each computed in float32 (float64) and rounded once."""
    s, up, left, in_valley = gated_factors(h, slot, bits, curve)
    slope = decode(s.to(h.dtype), left, curve)
    if curve.unimodal:
        slope = torch.where(in_valley, curve.derivative(slot.double(), torch).to(slope.dtype), slope)
    grad_up.copy_(grad * s)
    grad_gate.copy_(grad * up * slope)


class Factors(NamedTuple):
    """What was saved of a gated product, told apart: s = act(gate) and up in float32 (float64), the rest bool."""

    s: Tensor
    up: Tensor
    left: Tensor  # where gate lies on the left branch
    in_valley: Tensor  # where the slot is gate itself


def gated_factors(h: Tensor, slot: Tensor, bits: Tensor, curve: Curve) -> Factors:
    """The two factors of ``h``, one from the slot, the other from ``h`` and the one."""
    *side, holds_up = (unpack(plane, h.shape) for plane in bits.chunk(2 if curve.unimodal else 1, dim=-1))
    left = side[0] if side else (slot == 0) & ~holds_up
    in_valley = torch.zeros_like(left)
    known = slot  # act(gate) or up
    if curve.unimodal:
        in_valley = (slot <= curve.valley(slot.dtype)[1]) & ~holds_up
        known = torch.where(in_valley, curve.forward(slot), slot)
    other = _other_factor(h, known)
    known = known.to(other.dtype)
    return Factors(torch.where(holds_up, other, known), torch.where(holds_up, known, other), left, in_valley)


def _other_factor(h: Tensor, kept: Tensor) -> Tensor:
    """The factor that makes ``h`` with the kept one. An overflowed h counts as the largest number.

    Where the kept factor is 0, so is the other one, and the product gives it its sign. The quotient is held
    below overflow too: h / s may be one rounding beyond the up that it stands for.
    """
    most = torch.finfo(h.dtype).max
    wide = torch.promote_types(h.dtype, torch.float32)
    h, kept = h.to(wide).clamp(-most, most), kept.to(wide)
    return torch.where(kept == 0, h * kept, h / kept).clamp_(-most, most)


def decode(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    """f'(x) from the output and the branch: float64 for float64, else float32."""
    if not curve.unimodal:
        return (~left).to(torch.promote_types(y.dtype, torch.float32))
    if y.dtype == torch.float64:
        return derivative_from_output(curve, y, left)
    if y.dtype == torch.float32:
        return _decode_float32(y, left, curve)
    table = _table_on(curve.name, y.dtype, y.device)
    return table.index_select(0, table_index(y, left).flatten()).view(y.shape)


@once
def _table_on(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return decode_table(name, dtype).to(device)


@once
def _polynomials_on(name: str, device: torch.device) -> tuple[Tensor, ...]:
    """scale, shift and the polynomials of each piece, ready for lookup by piece."""
    from optiacts.curves import get

    c = get(name).coefficients
    rows = (c.scale, c.shift, *c.polynomials)
    return tuple(torch.tensor(row, dtype=torch.float32, device=device) for row in rows)


def _decode_float32(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    """The decode described in curves/_format.py."""
    c = curve.coefficients
    above = ((y - c.y_min_high) - c.y_min_low).clamp(min=c.least)
    part = (above * (-1 / c.y_min)).clamp(max=1 - 2.0**-24)
    v = torch.where(left, -torch.log1p(-part), above).sqrt_()
    v = torch.where(left, v.clamp(max=c.limits[0]), v.clamp(max=c.limits[1]))
    piece = torch.where(left, 0, 1 + (v > c.breaks[0]).int() + (v > c.breaks[1]).int())
    scale, shift, *polynomials = _polynomials_on(curve.name, y.device)
    u = v * scale[piece] + shift[piece]
    slope = polynomials[-1][piece]
    for row in reversed(polynomials[:-1]):
        slope = slope * u + row[piece]
    return torch.where(left, slope * y, slope)
