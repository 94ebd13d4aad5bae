"""The two kernels: x -> (y, bits) and (grad, y, bits) -> grad_x, each in one pass over memory; see tiles.py."""

from __future__ import annotations

import triton
import triton.language as tl

from optiacts.backends.triton import tiles


@triton.jit
def forward_kernel(
    x_pointer,
    y_pointer,
    bits_pointer,
    units,
    columns,
    units_per_row,
    VALUE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    UNIT: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """y = VALUE(x), and the bits x < THRESHOLD. Without a VALUE only the bits."""
    first, offsets, inside, word, word_inside = tiles.dense_tile(units, columns, units_per_row, UNIT, UNITS, PADDED)
    x = tl.load(x_pointer + first + offsets, mask=inside, other=0.0)
    if VALUE is not None:
        tl.store(y_pointer + first + offsets, VALUE(x), mask=inside)
    flags = (x.to(tl.float32) < THRESHOLD) & inside
    tl.store(tiles.words(bits_pointer, UNIT) + word, tiles.pack(flags, UNIT, UNITS), mask=word_inside)


@triton.jit
def backward_kernel(
    grad_pointer,
    y_pointer,
    bits_pointer,
    grad_x_pointer,
    units,
    columns,
    units_per_row,
    SLOPE: tl.constexpr,
    UNIT: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """grad_x = grad * f'(x), with f'(x) = SLOPE(y, left), left being the bits. In float32, rounded once."""
    first, offsets, inside, word, word_inside = tiles.dense_tile(units, columns, units_per_row, UNIT, UNITS, PADDED)
    words = tl.load(tiles.words(bits_pointer, UNIT) + word, mask=word_inside, other=0)
    grad = tl.load(grad_pointer + first + offsets, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_pointer + first + offsets, mask=inside, other=0.0).to(tl.float32)
    left = tiles.unpack(words, UNIT, UNITS)
    product = grad * SLOPE(y, left)
    tl.store(grad_x_pointer + first + offsets, product.to(grad_x_pointer.dtype.element_ty), mask=inside)
