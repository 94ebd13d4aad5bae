"""The kernels, each in one pass over memory; see tiles.py: x -> (y, bits), (grad, y, bits) -> grad_x, a dropout."""

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
    scale,
    inverse,
    SLOPE: tl.constexpr,
    BITS: tl.constexpr,
    UNIT: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """grad_x = grad * f'(x), with f'(x) = SLOPE(y, left), left being the bits. In float32, rounded once.

    Without BITS, left are outputs of 0.
    With a ``scale``, not None, y has gone through a dropout: it is ``scale`` times the output, or 0 with the bit set.
    """
    first, offsets, inside, word, word_inside = tiles.dense_tile(units, columns, units_per_row, UNIT, UNITS, PADDED)
    grad = tl.load(grad_pointer + first + offsets, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_pointer + first + offsets, mask=inside, other=0.0).to(tl.float32)
    if BITS:
        words = tl.load(tiles.words(bits_pointer, UNIT) + word, mask=word_inside, other=0)
        left = tiles.unpack(words, UNIT, UNITS)
    else:
        left = y == 0.0
    if scale is None:
        product = grad * SLOPE(y, left)
    else:
        dropped = left & (y == 0.0)
        product = grad * scale * tl.where(dropped, 0.0, SLOPE(y * inverse, left))
    tl.store(grad_x_pointer + first + offsets, product.to(grad_x_pointer.dtype.element_ty), mask=inside)


@triton.jit
def scale_kept_kernel(
    x_pointer,
    bits_pointer,
    y_pointer,
    units,
    columns,
    units_per_row,
    scale,
    UNIT: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """y = x * scale, and x * 0 where the bit is set: a dropout and its gradient."""
    first, offsets, inside, word, word_inside = tiles.dense_tile(units, columns, units_per_row, UNIT, UNITS, PADDED)
    words = tl.load(tiles.words(bits_pointer, UNIT) + word, mask=word_inside, other=0)
    x = tl.load(x_pointer + first + offsets, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.where(tiles.unpack(words, UNIT, UNITS), 0.0, scale)
    tl.store(y_pointer + first + offsets, y.to(y_pointer.dtype.element_ty), mask=inside)
