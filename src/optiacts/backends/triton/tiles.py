"""How the kernels go over memory: tiles of ``UNITS`` units of ``UNIT`` elements.

A unit is the elements whose bits share one word of memory: 32 and an int32 where the rows of the tensor are whole
words, else 8 and a byte. So the bits of a unit meet in one register, and are read and written in words while the
elements move 16 bytes at a time. Where the last dimension is no multiple of the unit (``PADDED``), each row of the
tensor ends with unused bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dense_tile(units, columns, units_per_row, UNIT: tl.constexpr, UNITS: tl.constexpr, PADDED: tl.constexpr):
    """Of contiguous tensors: the tile's first element, the offsets from it, and which elements and words exist.

    Padded elements are found by row and column: right for every shape, but slower. The first element is a 64-bit
    number, as tensors may have more than 2^31 elements; so are padded offsets.
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
    return first, offsets, inside, first_unit + row, word_inside


@triton.jit
def row_tile(
    units, columns, units_per_row, PLANES: tl.constexpr, UNIT: tl.constexpr, UNITS: tl.constexpr, PADDED: tl.constexpr
):
    """Of tensors whose rows lie apart, and of ``PLANES`` planes of bits: row and column of the tile's elements, which
    of them exist, the place of each word in the first plane, and which words exist."""
    if UNIT == 32:  # 2^31 words of 32 elements: more than a GPU can hold, so the division may be a 32-bit one
        unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    else:
        unit = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    row, in_row = (unit // units_per_row).to(tl.int64), unit % units_per_row
    column = in_row[:, None] * UNIT + tl.arange(0, UNIT)[None, :]
    word_inside = unit < units
    inside = tl.broadcast_to(word_inside[:, None], (UNITS, UNIT))
    if PADDED:
        inside = inside & (column < columns)
    return row[:, None], column, inside, row * (PLANES * units_per_row) + in_row, word_inside


@triton.jit
def words(bits_pointer, UNIT: tl.constexpr):
    """The bits as words of ``UNIT`` bits."""
    if UNIT == 32:
        pointer = bits_pointer.to(tl.pointer_type(tl.int32))
    else:
        pointer = bits_pointer
    return pointer


@triton.jit
def pack(flags, UNIT: tl.constexpr, UNITS: tl.constexpr):
    """The word of each unit, from a flag per element."""
    return tl.sum(tl.where(flags, _places(UNIT, UNITS), 0), axis=1)


@triton.jit
def unpack(words, UNIT: tl.constexpr, UNITS: tl.constexpr):
    """A flag per element, from the words."""
    return (words.to(tl.int32)[:, None] & _places(UNIT, UNITS)) != 0


@triton.jit
def _places(UNIT: tl.constexpr, UNITS: tl.constexpr):
    """The value of the bit of each element of a unit, for every unit of the tile."""
    return tl.broadcast_to((1 << tl.arange(0, UNIT))[None, :], (UNITS, UNIT))
