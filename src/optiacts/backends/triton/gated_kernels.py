"""The two gated kernels: (gate, up) -> (h, slot, bits) and (grad, h, slot, bits) -> (grad_gate, grad_up).

gate, up and the gradients may be halves of longer rows, read and written in place through their row stride, and each
row of bits holds two planes, the side bits of gate and the "slot holds up" bits. The mathematics is the eager
backend's; docs/gated.md explains it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optiacts.backends.triton import tiles
from optiacts.backends.triton.decode import clamp


@triton.jit
def gated_forward_kernel(
    gate_pointer,
    up_pointer,
    s_pointer,
    h_pointer,
    slot_pointer,
    bits_pointer,
    units,
    columns,
    units_per_row,
    gate_stride,
    up_stride,
    VALUE: tl.constexpr,
    PLANES: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BORDERS: tl.constexpr,
    TINY: tl.constexpr,
    MOST: tl.constexpr,
    UNIT: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """s = VALUE(gate), or read from ``s_pointer`` without a VALUE; h = s * up; the slot and the bits.

    With one of the PLANES the side bits are left out.
    """
    row, column, inside, word, word_inside = tiles.row_tile(
        units, columns, units_per_row, PLANES, UNIT, UNITS, PADDED
    )
    dense = row * columns + column
    gate = tl.load(gate_pointer + row * gate_stride + column, mask=inside, other=0.0)
    up = tl.load(up_pointer + row * up_stride + column, mask=inside, other=0.0)
    if VALUE is not None:
        s = VALUE(gate)
    else:
        s = tl.load(s_pointer + dense, mask=inside, other=0.0)
    wide_s, wide_up = s.to(tl.float32), up.to(tl.float32)
    h = (wide_s * wide_up).to(gate.dtype)
    size = tl.abs(h.to(tl.float32))
    normal = (size >= TINY) & (size <= MOST)
    wide_gate = gate.to(tl.float32)
    left = wide_gate < THRESHOLD
    in_valley = (wide_gate >= BORDERS[0]) & (wide_gate <= BORDERS[1])
    holds_up = (tl.abs(wide_up) > tl.abs(wide_s)) & (normal == 0) & ((left & (wide_s == 0.0)) == 0)
    tl.store(h_pointer + dense, h, mask=inside)
    tl.store(slot_pointer + dense, tl.where(holds_up, up, tl.where(in_valley, gate, s)), mask=inside)
    words = tiles.words(bits_pointer, UNIT) + word
    if PLANES == 2:
        tl.store(words, tiles.pack(left & inside, UNIT, UNITS), mask=word_inside)
        words += units_per_row
    tl.store(words, tiles.pack(holds_up & inside, UNIT, UNITS), mask=word_inside)


@triton.jit
def gated_backward_kernel(
    grad_pointer,
    h_pointer,
    slot_pointer,
    bits_pointer,
    grad_gate_pointer,
    grad_up_pointer,
    units,
    columns,
    units_per_row,
    grad_gate_stride,
    grad_up_stride,
    scale,
    inverse,
    SLOPE: tl.constexpr,
    PLANES: tl.constexpr,
    VALLEY: tl.constexpr,
    BORDER: tl.constexpr,
    MOST: tl.constexpr,
    UNIT: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """grad_gate = grad * up * f'(gate), grad_up = grad * s, with s or up = h / the other. float32, rounded once.

    With a ``scale``, not None, h has gone through a dropout: it is ``scale`` times the product, or it and the slot
    are 0.
    """
    row, column, inside, word, word_inside = tiles.row_tile(
        units, columns, units_per_row, PLANES, UNIT, UNITS, PADDED
    )
    dense = row * columns + column
    words = tiles.words(bits_pointer, UNIT) + word
    holds_up = tiles.unpack(tl.load(words + (PLANES - 1) * units_per_row, mask=word_inside, other=0), UNIT, UNITS)
    grad = tl.load(grad_pointer + dense, mask=inside, other=0.0).to(tl.float32)
    h = clamp(tl.load(h_pointer + dense, mask=inside, other=0.0).to(tl.float32), -MOST, MOST)
    if scale is not None:
        grad = grad * scale
        h = h * inverse
    slot = tl.load(slot_pointer + dense, mask=inside, other=0.0)
    kept = slot.to(tl.float32)
    if PLANES == 2:
        left = tiles.unpack(tl.load(words, mask=word_inside, other=0), UNIT, UNITS)
        in_valley = (kept <= BORDER) & (holds_up == 0)
        output, valley_slope = VALLEY(kept)
        known = tl.where(in_valley, output.to(slot.dtype).to(tl.float32), kept)
    else:
        left = (kept == 0.0) & (holds_up == 0)
        known = kept
    other = clamp(tl.where(known == 0.0, h * known, h / known), -MOST, MOST)
    s, up = tl.where(holds_up, other, known), tl.where(holds_up, known, other)
    slope = SLOPE(s.to(slot.dtype).to(tl.float32), left)
    if PLANES == 2:
        slope = tl.where(in_valley, valley_slope, slope)
    element = grad_gate_pointer.dtype.element_ty
    tl.store(grad_up_pointer + row * grad_up_stride + column, (grad * s).to(element), mask=inside)
    tl.store(grad_gate_pointer + row * grad_gate_stride + column, (grad * up * slope).to(element), mask=inside)
