"""The backend in plain torch operations: any device, any floating dtype; the others are measured by it.

float32 is decoded by the generated polynomials, bfloat16 and float16 by the exhaustive tables, float64 by
inverting the curve. The product with the incoming gradient is taken in float32 (float64) and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts import decoders
from optiacts.curves import ClosedForm, Curve, Unimodal
from optiacts.decoders import branch, decode, valley
from optiacts.layouts import Order, permute, restore
from optiacts.packing import pack, packed_shape

name = "eager"
dtypes = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))
kinds: frozenset[type] = frozenset((Unimodal, ClosedForm))


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
    x = permute(x, order)
    if curve.decoder.side_bits == 0:
        return x.new_empty(packed_shape(x.shape, 0), dtype=torch.uint8)
    return pack(curve.left(x))


def activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: Curve) -> Tensor:
    """``grad`` * f'(x), in the dtype of ``y``."""
    return (grad * decode(y, branch(y, bits, curve), curve)).to(y.dtype)


def gated_forward(gate: Tensor, up: Tensor, curve: Curve, order: Order = ()) -> tuple[Tensor, Tensor, Tensor]:
    """h = act(gate) * up, the slot and the packed bits; docs/gated.md says what the slot holds and why."""
    s = curve.forward(gate)
    h = s * up
    left = curve.left(gate)
    limits = torch.finfo(h.dtype)
    size = h.abs()
    normal = (size >= limits.tiny) & (size <= limits.max)
    holds_up = (up.abs() > s.abs()) & ~normal & ~(left & (s == 0))
    if isinstance(curve.decoder, Unimodal):
        itself = gate.to(s.dtype)
        s = torch.where(valley.contains(curve, itself), itself, s)
    slot = torch.where(holds_up, up, s)
    planes = (left, holds_up) if curve.decoder.side_bits else (holds_up,)
    h, slot = (permute(t, order).contiguous() for t in (h, slot))
    return restore(h, order), slot, pack(*(permute(flags, order) for flags in planes))


def gated_backward(
    grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, curve: Curve, grad_gate: Tensor, grad_up: Tensor
) -> None:
    """Writes grad * up * f'(gate) and grad * act(gate), each computed in float32 (float64) and rounded once."""
    s, up, left, in_valley = decoders.read(h, slot, bits, curve)
    slope = decode(s.to(h.dtype), left, curve)
    if isinstance(curve.decoder, Unimodal):
        slope = torch.where(in_valley, curve.derivative(slot.double(), torch).to(slope.dtype), slope)
    grad_up.copy_(grad * s)
    grad_gate.copy_(grad * up * slope)
