"""The kernels of norms: statistics of the rows of x, with the remainder bits of y; the gradients; sums.

A program handles tiles of ROWS whole rows, padded to a power of two of channels: OCTETS of eight, since the remainder
bits of eight elements share a byte. A tile is (ROWS, OCTETS, 8), so that such a byte is met in the registers of the
threads that hold its elements. The backward goes over its share of the rows with the weight in registers, reads the
next rows while it computes, and adds up its part of the gradients of weight and bias; a last kernel sums the parts of
all programs, always in the same order. The mathematics is the eager backend's: see eager_norm.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optiacts.backends.triton.elementary import divide
from optiacts.backends.triton.guard_kernels import is_bad


@triton.jit
def statistics_kernel(
    x_pointer,
    y_pointer,
    scale_pointer,
    shift_pointer,
    mean_pointer,
    rstd_pointer,
    bits_pointer,
    rows,
    columns,
    eps,
    KNOWN: tl.constexpr,
    CENTERED: tl.constexpr,
    REMAINDER: tl.constexpr,
    SCALED: tl.constexpr,
    SHIFTED: tl.constexpr,
    MANTISSA: tl.constexpr,
    LOWEST: tl.constexpr,
    ROWS: tl.constexpr,
    OCTETS: tl.constexpr,
):
    """mean and rstd of each row (the mean of a norm that is not centred is one 0), unless they are KNOWN and read;
    with REMAINDER two planes of bits, in bytes."""
    row, octet, column, there = _tile(tl.program_id(0), columns, ROWS, OCTETS)
    exists = row < rows
    inside = exists[:, None, None] & there[None, :, :]
    places = row[:, None, None] * columns + column[None, :, :]
    x = tl.load(x_pointer + places, mask=inside, other=0.0).to(tl.float32)
    if REMAINDER:
        y = tl.load(y_pointer + places, mask=inside, other=0.0).to(tl.float32)
    if KNOWN:
        rstd = tl.load(rstd_pointer + row, mask=exists, other=0.0)
        if CENTERED:
            x -= tl.load(mean_pointer + row, mask=exists, other=0.0)[:, None, None]
    else:
        if CENTERED:
            mean = _sum(x) / columns
            x = tl.where(inside, x - mean[:, None, None], 0.0)
            tl.store(mean_pointer + row, mean, mask=exists)
        else:
            tl.store(mean_pointer, 0.0)
        rstd = divide(1.0, tl.sqrt_rn(_sum(x * x) / columns + eps))
        tl.store(rstd_pointer + row, rstd, mask=exists)
    if REMAINDER:
        exact = x * rstd[:, None, None]
        if SCALED:
            exact *= tl.load(scale_pointer + column, mask=there, other=0.0)[None, :, :]
        if SHIFTED:
            exact += tl.load(shift_pointer + column, mask=there, other=0.0)[None, :, :]
        position = (exact - y) * _power(y, LOWEST, 254 + MANTISSA, -1)
        quarter = tl.clamp(tl.floor(position * 4.0) + 2.0, 0.0, 3.0).to(tl.int32)
        quarter = tl.where(inside, quarter, 0)
        planes = tl.sum(((quarter & 1) | ((quarter & 2) << 15)) << tl.arange(0, 8)[None, None, :], axis=2)
        target, width, written = _bytes(bits_pointer, row, octet, exists, columns)
        tl.store(target, (planes & 0xFF).to(tl.uint8), mask=written)
        tl.store(target + width, ((planes >> 16) & 0xFF).to(tl.uint8), mask=written)


@triton.jit
def backward_kernel(
    grad_pointer,
    kept_pointer,
    mean_pointer,
    rstd_pointer,
    scale_pointer,
    shift_pointer,
    slot_pointer,
    rescued_pointer,
    bits_pointer,
    grad_x_pointer,
    scale_parts_pointer,
    shift_parts_pointer,
    poisoned_pointer,
    rows,
    columns,
    rescued_columns,
    smallest,
    most,
    spread,
    reach,
    furthest,
    GUARDED: tl.constexpr,
    CENTERED: tl.constexpr,
    OUTPUT: tl.constexpr,
    MEAN: tl.constexpr,
    SCALED: tl.constexpr,
    SHIFTED: tl.constexpr,
    RESCUED: tl.constexpr,
    REMAINDER: tl.constexpr,
    MANTISSA: tl.constexpr,
    LOWEST: tl.constexpr,
    ROWS: tl.constexpr,
    OCTETS: tl.constexpr,
):
    """dx = rstd (w g - mean(w g) - x̂ mean(w g x̂)), and the program's part of Σ g x̂; of Σ g unless SCALED alone.

    GUARDED: each program looks at all channels, and takes NaN for the weight and the bias if one is bad.
    """
    row, octet, column, there = _tile(tl.program_id(0), columns, ROWS, OCTETS)
    scale = tl.full((OCTETS, 8), 1.0, tl.float32)
    shift = tl.zeros((OCTETS, 8), tl.float32)
    if SCALED:
        scale = tl.load(scale_pointer + column, mask=there, other=1.0)
    if SHIFTED:
        shift = tl.load(shift_pointer + column, mask=there, other=0.0)
    if RESCUED:
        slot = tl.load(slot_pointer + column, mask=there, other=-1)
    if GUARDED:
        bad = there & is_bad(tl.abs(scale), tl.abs(shift), smallest, most, spread, reach, furthest)
        if RESCUED:
            bad = bad & (slot < 0)
        poison = tl.max(tl.max(bad.to(tl.int32), axis=1), axis=0)
        if poison != 0:
            tl.store(poisoned_pointer, 1)
        scale = tl.where(poison != 0, float("nan"), scale)
        shift = tl.where(poison != 0, float("nan"), shift)
    inverse = divide(1.0, scale)
    pointers = (grad_pointer, kept_pointer, rstd_pointer, bits_pointer)
    by_scale = tl.zeros((OCTETS, 8), tl.float32)
    by_shift = tl.zeros((OCTETS, 8), tl.float32)
    next_grad, next_kept, next_rstd, next_low, next_high = _read(
        pointers, row, octet, column, there, rows, columns, REMAINDER
    )
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        exists = row < rows
        inside = exists[:, None, None] & there[None, :, :]
        grad, kept, rstd = next_grad.to(tl.float32), next_kept.to(tl.float32), next_rstd[:, None, None]
        low, high = next_low, next_high
        ahead = row + tl.num_programs(0) * ROWS
        next_grad, next_kept, next_rstd, next_low, next_high = _read(
            pointers, ahead, octet, column, there, rows, columns, REMAINDER
        )
        if MEAN:
            mean = tl.load(mean_pointer + row, mask=exists, other=0.0)[:, None, None]
        x_hat = kept
        if OUTPUT:
            if REMAINDER:
                quarter = (_bits(low) + 2 * _bits(high)).to(tl.float32)
                x_hat += (quarter * 0.25 - 0.375) * _power(kept, LOWEST, -MANTISSA, 1)
            if SHIFTED:
                x_hat -= shift[None, :, :]
            if SCALED:
                x_hat *= inverse[None, :, :]
            if RESCUED:
                taken = inside & (slot >= 0)[None, :, :]
                exact = tl.load(
                    rescued_pointer + row[:, None, None] * rescued_columns + slot[None, :, :], mask=taken, other=0.0
                ).to(tl.float32)
                if MEAN:
                    exact -= mean
                x_hat = tl.where(taken, exact * rstd, x_hat)
        else:
            if MEAN:
                x_hat -= mean
            x_hat *= rstd
        x_hat = tl.where(inside, x_hat, 0.0)
        scaled = grad
        if SCALED:
            scaled *= scale[None, :, :]
        if CENTERED:
            along, level = _sums(scaled * x_hat, scaled)
            dx = scaled - x_hat * (along / columns)[:, None, None] - (level / columns)[:, None, None]
        else:
            dx = scaled - x_hat * (_sum(scaled * x_hat) / columns)[:, None, None]
        places = row[:, None, None] * columns + column[None, :, :]
        tl.store(grad_x_pointer + places, (rstd * dx).to(grad_x_pointer.dtype.element_ty), mask=inside)
        by_scale += tl.sum(grad * x_hat, axis=0)
        if SHIFTED or not SCALED:
            by_shift += tl.sum(grad, axis=0)
    part = tl.program_id(0).to(tl.int64) * columns + column
    tl.store(scale_parts_pointer + part, by_scale, mask=there)
    if SHIFTED or not SCALED:
        tl.store(shift_parts_pointer + part, by_shift, mask=there)


@triton.jit
def sum_kernel(parts_pointer, sums_pointer, programs, columns, planes, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sums of all programs' parts: (planes, programs, columns) -> (2, columns), 0 where there is no plane."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = (column < tl.where(tl.program_id(1) < planes, columns, 0))[None, :]
    plane = parts_pointer + tl.program_id(1).to(tl.int64) * programs * columns
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for first in range(0, programs, PARTS):
        part = first + tl.arange(0, PARTS)
        total += tl.load(plane + part[:, None] * columns + column[None, :], (part < programs)[:, None] & there, 0.0)
    target = sums_pointer + tl.program_id(1) * columns + column
    tl.store(target, tl.sum(total, axis=0).to(sums_pointer.dtype.element_ty), mask=column < columns)


@triton.jit
def _tile(program, columns, ROWS: tl.constexpr, OCTETS: tl.constexpr):
    """The rows and octets of a tile, the column of each element, and whether there is such a one."""
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    octet = tl.arange(0, OCTETS)
    column = octet[:, None] * 8 + tl.arange(0, 8)[None, :]
    return row, octet, column, column < columns


@triton.jit
def _read(pointers, row, octet, column, there, rows, columns, REMAINDER: tl.constexpr):
    """What a tile of rows needs; without a REMAINDER nothing stands for the bytes of its bits."""
    grad_pointer, kept_pointer, rstd_pointer, bits_pointer = pointers
    exists = row < rows
    inside = exists[:, None, None] & there[None, :, :]
    places = row[:, None, None] * columns + column[None, :, :]
    grad = tl.load(grad_pointer + places, mask=inside, other=0.0)
    kept = tl.load(kept_pointer + places, mask=inside, other=0.0)
    rstd = tl.load(rstd_pointer + row, mask=exists, other=0.0)
    if REMAINDER:
        source, width, stored = _bytes(bits_pointer, row, octet, exists, columns)
        low = tl.load(source, mask=stored, other=0)
        high = tl.load(source + width, mask=stored, other=0)
    else:
        low = 0
        high = 0
    return grad, kept, rstd, low, high


@triton.jit
def _bytes(bits_pointer, row, octet, exists, columns):
    """Where the first plane's bytes of a tile are, how far behind it the second's, and which bytes there are."""
    width = (columns + 7) // 8
    place = bits_pointer + row[:, None] * (2 * width) + octet[None, :]
    return place, width, exists[:, None] & (octet < width)[None, :]


@triton.jit
def _bits(octets):
    """The bits of bytes, 0 or 1, the lowest first."""
    return (octets.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1


@triton.jit
def _power(y, LOWEST: tl.constexpr, PLUS: tl.constexpr, SIGN: tl.constexpr):
    """The unit in the last place of a number of 16 bits, or 1 over it, made from the exponent of ``y``."""
    exponent = tl.maximum((y.to(tl.int32, bitcast=True) >> 23) & 0xFF, LOWEST)
    return ((SIGN * exponent + PLUS) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _sum(tile):
    """Of each row."""
    return tl.sum(tl.sum(tile, axis=2), axis=1)


@triton.jit
def _sums(first, second):
    """Of each row, of two tiles in one go."""
    return tl.reduce((tl.sum(first, axis=2), tl.sum(second, axis=2)), 1, _add_both)


@triton.jit
def _add_both(a, b, c, d):
    return a + c, b + d
