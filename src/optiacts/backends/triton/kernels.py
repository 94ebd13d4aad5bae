"""The two kernels: x -> (y, bits) and (grad, y, bits) -> grad_x, each in one pass over memory.

A program handles a tile of ``UNITS`` rows of ``UNIT`` elements. A row is the elements whose side bits share one
word of memory: 32 and an int32 where the rows of the tensor are whole words, else 8 and a byte. So the bits of a
row meet in one register, and are read and written in words while the elements move 16 bytes at a time.

Where the last dimension is no multiple of 8 (``PADDED``), each row of the tensor ends with unused bits, and
elements are found by row and column. That is right for every shape, but slower.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optiacts.backends.triton.decode import decode


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
    first, offsets, inside, word_inside = _tile(units, columns, units_per_row, UNIT, UNITS, PADDED)
    x = tl.load(x_pointer + first + offsets, mask=inside, other=0.0)
    if VALUE is not None:
        tl.store(y_pointer + first + offsets, VALUE(x), mask=inside)
    flags = (x.to(tl.float32) < THRESHOLD) & inside
    words = tl.sum(tl.where(flags, _places(UNIT, UNITS), 0), axis=1)
    tl.store(_words(bits_pointer, UNIT, UNITS), words, mask=word_inside)


@triton.jit
def backward_kernel(
    grad_pointer,
    y_pointer,
    bits_pointer,
    grad_x_pointer,
    units,
    columns,
    units_per_row,
    DECODER: tl.constexpr,
    VENDOR: tl.constexpr,
    UNIT: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """grad_x = grad * f'(x), the derivative decoded from y and the bits. In float32, rounded once."""
    first, offsets, inside, word_inside = _tile(units, columns, units_per_row, UNIT, UNITS, PADDED)
    words = tl.load(_words(bits_pointer, UNIT, UNITS), mask=word_inside, other=0)
    grad = tl.load(grad_pointer + first + offsets, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_pointer + first + offsets, mask=inside, other=0.0).to(tl.float32)
    left = (words.to(tl.int32)[:, None] & _places(UNIT, UNITS)) != 0
    product = grad * decode(y, left, DECODER, VENDOR)
    tl.store(grad_x_pointer + first + offsets, product.to(grad_x_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _tile(units, columns, units_per_row, UNIT: tl.constexpr, UNITS: tl.constexpr, PADDED: tl.constexpr):
    """The first element of this program's tile, the tile's offsets from it, and which elements and words exist.

    The first element is a 64-bit number, as tensors may have more than 2^31 elements; so are padded offsets.
    """
    first_unit = tl.program_id(0).to(tl.int64) * UNITS
    row, place = tl.arange(0, UNITS), tl.arange(0, UNIT)
    word_inside = row < tl.minimum(units - first_unit, UNITS).to(tl.int32)
    if PADDED:
        unit = first_unit + row
        column = (unit % units_per_row)[:, None] * UNIT + place[None, :]
        offsets = (unit // units_per_row)[:, None] * columns + column
        first = first_unit * 0
        inside = word_inside[:, None] & (column < columns)
    else:
        offsets = row[:, None] * UNIT + place[None, :]
        first = first_unit * UNIT
        inside = tl.broadcast_to(word_inside[:, None], (UNITS, UNIT))
    return first, offsets, inside, word_inside


@triton.jit
def _places(UNIT: tl.constexpr, UNITS: tl.constexpr):
    """The value of the bit of each element of a row, for every row of the tile."""
    return tl.broadcast_to((1 << tl.arange(0, UNIT))[None, :], (UNITS, UNIT))


@triton.jit
def _words(bits_pointer, UNIT: tl.constexpr, UNITS: tl.constexpr):
    """Where the words of this program's bits lie."""
    if UNIT == 32:
        words = bits_pointer.to(tl.pointer_type(tl.int32))
    else:
        words = bits_pointer
    return words + tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
