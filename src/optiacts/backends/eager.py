"""The backend in plain torch operations: any device, any floating dtype; the others are measured by it.

float32 is decoded by the generated polynomials, bfloat16 and float16 by the exhaustive tables, float64 by
inverting the curve. The product with the incoming gradient is taken in float32 (float64) and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from optiacts import decoders
from optiacts.curves import ClosedForm, Curve
from optiacts.decoders import branch, decode, valley
from optiacts.layouts import Order, permute, restore
from optiacts.packing import pack, packed_shape, unpack

name = "eager"
dtypes = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


def serves(curve: Curve, dtype: torch.dtype) -> bool:
    """Whether there are kernels for ``curve``: for every one."""
    return True


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


def activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: Curve, scale: float | None = None) -> Tensor:
    """``grad`` * f'(x), in the dtype of ``y``."""
    form = curve.decoder if isinstance(curve.decoder, ClosedForm) else None
    if (
        form is not None
        and form.backward is not None
        and grad.dtype == y.dtype
        and (scale is None or form.scale_free)
    ):
        product = form.backward(grad, y)
        return product if scale is None else product.mul_(scale)
    left = branch(y, bits, curve)
    if scale is None:
        return (grad * decode(y, left, curve)).to(y.dtype)
    output = unscaled(y, scale)
    slope = torch.where((y == 0) & left, 0.0, decode(output.to(y.dtype), left, curve))
    return (grad.to(output.dtype) * scale * slope).to(y.dtype)


def unscaled(y: Tensor, scale: float) -> Tensor:
    """What a dropout has multiplied by ``scale``, in float32 or float64."""
    return y.to(torch.promote_types(y.dtype, torch.float32)) * (1 / scale)


def gated_forward(
    gate: Tensor,
    up: Tensor,
    curve: Curve,
    order: Order = (),
    rounded: Callable[[Tensor], Tensor] = lambda result: result,
) -> tuple[Tensor, Tensor, Tensor]:
    """h = act(gate) * up, the slot and the packed bits; docs/gated.md says what the slot holds and why.

    ``rounded``: what rounds a result to its dtype, where an op does not.
    """
    s = rounded(curve.forward(gate))
    h = rounded(s * up)
    left = curve.left(gate) if curve.decoder.side_bits else s == 0
    limits = torch.finfo(h.dtype)
    size = h.abs()
    normal = (size >= limits.tiny) & (size <= limits.max)
    holds_up = (up.abs() > s.abs()) & ~normal
    if curve.zero_is_flat:
        holds_up &= ~(left & (s == 0))  # both gradients are 0 there
    if curve.decoder.side_bits:
        itself = gate.to(s.dtype)
        s = torch.where(valley.contains(curve, itself), itself, s)
    slot = torch.where(holds_up, up, s)
    planes = (left, holds_up) if curve.decoder.side_bits else (holds_up,)
    h, slot = (permute(t, order).contiguous() for t in (h, slot))
    return restore(h, order), slot, pack(*(permute(flags, order) for flags in planes))


def gated_backward(
    grad: Tensor,
    h: Tensor,
    slot: Tensor,
    bits: Tensor,
    curve: Curve,
    grad_gate: Tensor,
    grad_up: Tensor,
    scale: float | None = None,
) -> None:
    """Writes grad * up * f'(gate) and grad * act(gate), each computed in float32 (float64) and rounded once."""
    s, up, left, in_valley = decoders.read(h, slot, bits, curve, scale)
    if scale is not None:
        grad = grad.to(s.dtype) * scale
    slope = decode(s.to(h.dtype), left, curve)
    if curve.decoder.side_bits:
        slope = torch.where(in_valley, curve.derivative(slot.double(), torch).to(slope.dtype), slope)
    grad_up.copy_(grad * s)
    grad_gate.copy_(grad * up * slope)


def pack_dropped(kept: Tensor) -> Tensor:
    """The packed bits of what a dropout did not keep, from the bools of what it kept."""
    return pack(~kept)


def scale_kept(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
    """``x * scale``, and ``x * 0`` where the packed bit is set."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (~unpack(dropped, x.shape)).to(wide.dtype).mul_(scale)).to(x.dtype)
