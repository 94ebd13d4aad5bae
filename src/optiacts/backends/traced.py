"""The backend for compiled graphs on GPUs: operations that the compiler sees, and fuses with what stands around them.

An op of ours is called from Python, and a small one takes longer to start there than to run. In a compiled graph that
is most of its time. Nothing of it is left where the compiler writes the kernels itself; the graph keeps what the op
would have kept. On a CPU the native kernels are faster than what it writes, and starting costs little.

A compiler does not round between the operations that it fuses: ``rounded`` does, where later steps rest on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts.backends import eager, triton
from optiacts.curves import ClosedForm, Curve
from optiacts.decoders import arithmetic, branch, valley
from optiacts.layouts import Order
from optiacts.packing import unpack_planes

name = "traced"
dtypes = frozenset((torch.float32, torch.bfloat16, torch.float16))

serves = triton.serves
activation_forward = eager.activation_forward
scale_kept = eager.scale_kept


def pack_dropped(kept: Tensor) -> Tensor:
    """The packed bits of what a dropout did not keep, from the bools of what it kept."""
    return eager.pack_dropped(written(kept.contiguous()))


def activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: Curve, scale: float | None = None) -> Tensor:
    """``grad`` * f'(x), in the dtype of ``y``."""
    if isinstance(curve.decoder, ClosedForm) and curve.decoder.backward is not None:  # PyTorch's own
        return eager.activation_backward(grad, y, bits, curve, scale)
    left, wide = branch(y, bits, curve), y.float()
    if scale is None:
        return (grad.float() * arithmetic.slope(wide, left, curve, y.dtype)).to(y.dtype)
    slope = arithmetic.slope(wide * (1 / scale), left, curve, y.dtype)
    return (grad.float() * scale * torch.where((y == 0) & left, 0.0, slope)).to(y.dtype)


def gated_forward(gate: Tensor, up: Tensor, curve: Curve, order: Order = ()) -> tuple[Tensor, Tensor, Tensor]:
    """h = act(gate) * up, the slot and the packed bits. h is of act(gate) as it is kept, which tells up again."""
    return eager.gated_forward(gate, up, curve, order, rounded)


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
    """Writes grad * up * f'(gate) and grad * act(gate)."""
    *side, holds_up = unpack_planes(bits, h.shape, curve.decoder.side_bits + 1)
    most = torch.finfo(h.dtype).max
    product, kept, wide_grad = h.float().clamp(-most, most), slot.float(), grad.float()
    if scale is not None:
        product, wide_grad = product * (1 / scale), wide_grad * scale
    known, left = kept, (kept == 0) & ~holds_up
    if side:
        (left,) = side
        in_valley = (kept <= valley.borders(curve, slot.dtype)[1]) & ~holds_up
        output, valley_slope = arithmetic.valley(kept, curve, slot.dtype)
        known = torch.where(in_valley, rounded(output.to(slot.dtype)).float(), kept)
    other = torch.where(known == 0, product * known, product / known).clamp(-most, most)
    s, up = torch.where(holds_up, other, known), torch.where(holds_up, known, other)
    slope = arithmetic.slope(s, left, curve, slot.dtype)
    if side:
        slope = torch.where(in_valley, valley_slope, slope)
    grad_up.copy_(wide_grad * s)
    grad_gate.copy_(wide_grad * up * slope)


def written(x: Tensor) -> Tensor:
    """``x``, contiguous, which a compiler writes to memory.

    Where bits are packed by a kernel of their own it would write what it has at hand, in float32.
    """
    return x.as_strided(x.shape, x.stride())


def rounded(x: Tensor) -> Tensor:
    """``x``, rounded to its dtype also where a compiler does not: to the nearest, of two the even one."""
    if x.dtype is torch.float32:
        return x
    wide, lost = x.float(), 16 if x.dtype is torch.bfloat16 else 13  # bits of the mantissa
    pattern = wide.view(torch.int32)
    pattern = (pattern + ((1 << (lost - 1)) - 1) + ((pattern >> lost) & 1)) & -(1 << lost)
    result = pattern.view(torch.float32)
    if x.dtype is torch.float16:
        limits = torch.finfo(torch.float16)
        subnormal = (wide + _LIKE_SUBNORMALS) - _LIKE_SUBNORMALS
        result = torch.where(wide.abs() < limits.tiny, subnormal, result)
        result = torch.where(result.abs() > limits.max, wide.sign() * torch.inf, result)
    return torch.where(wide.isnan(), wide, result).to(x.dtype)


_LIKE_SUBNORMALS = 0.75  # numbers near it have in float32 the unit in the last place of float16's smallest, 2^-24
