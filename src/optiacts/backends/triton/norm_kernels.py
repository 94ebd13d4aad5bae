"""The two kernels of norms: statistics of the rows of x, with the remainder bits of y; and the gradients.

A program handles tiles of ROWS whole rows, padded to a power of two of COLUMNS. The backward goes over its share of
the rows with the weight in registers, and adds up its part of the gradients of weight and bias; the parts of all
programs are summed afterwards, always in the same order. The mathematics is the eager backend's: see eager_norm.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optiacts.backends.triton.elementary import divide


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
    CENTERED: tl.constexpr,
    REMAINDER: tl.constexpr,
    SCALED: tl.constexpr,
    SHIFTED: tl.constexpr,
    MANTISSA: tl.constexpr,
    LOWEST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """mean (of a centred norm) and rstd of each row; with REMAINDER two planes of bits, in bytes."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    places = row[:, None] * columns + column[None, :]
    x = tl.load(x_pointer + places, mask=inside, other=0.0).to(tl.float32)
    if CENTERED:
        mean = tl.sum(x, axis=1) / columns
        x = tl.where(inside, x - mean[:, None], 0.0)
        tl.store(mean_pointer + row, mean, mask=row < rows)
    rstd = divide(1.0, tl.sqrt_rn(tl.sum(x * x, axis=1) / columns + eps))
    tl.store(rstd_pointer + row, rstd, mask=row < rows)
    if REMAINDER:
        exact = x * rstd[:, None]
        if SCALED:
            exact *= tl.load(scale_pointer + column, mask=column < columns, other=0.0)[None, :]
        if SHIFTED:
            exact += tl.load(shift_pointer + column, mask=column < columns, other=0.0)[None, :]
        y = tl.load(y_pointer + places, mask=inside, other=0.0).to(tl.float32)
        position = (exact - y) * (_power(y, LOWEST, 254 + MANTISSA, -1))
        quarter = tl.clamp(tl.floor(position * 4.0) + 2.0, 0.0, 3.0).to(tl.int32)
        quarter = tl.where(inside, quarter, 0)
        octet = tl.arange(0, COLUMNS // 8)
        width = (columns + 7) // 8
        target = bits_pointer + row[:, None] * (2 * width) + octet[None, :]
        written = (row < rows)[:, None] & (octet < width)[None, :]
        tl.store(target, _bytes(quarter & 1, ROWS, COLUMNS), mask=written)
        tl.store(target + width, _bytes(quarter >> 1, ROWS, COLUMNS), mask=written)


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
    rows,
    columns,
    rescued_columns,
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
    COLUMNS: tl.constexpr,
):
    """dx = rstd (w g - mean(w g) - x̂ mean(w g x̂)), and this program's part of Σ g x̂ and Σ g."""
    column = tl.arange(0, COLUMNS)
    there = column < columns
    if SCALED:
        scale = tl.load(scale_pointer + column, mask=there, other=1.0)
        inverse = divide(1.0, scale)
    if SHIFTED:
        shift = tl.load(shift_pointer + column, mask=there, other=0.0)
    if RESCUED:
        slot = tl.load(slot_pointer + column, mask=there, other=-1)
    by_scale = tl.zeros((COLUMNS,), tl.float32)
    by_shift = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & there[None, :]
        places = row[:, None] * columns + column[None, :]
        grad = tl.load(grad_pointer + places, mask=inside, other=0.0).to(tl.float32)
        kept = tl.load(kept_pointer + places, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_pointer + row, mask=row < rows, other=0.0)[:, None]
        if MEAN:
            mean = tl.load(mean_pointer + row, mask=row < rows, other=0.0)[:, None]
        if OUTPUT:
            if REMAINDER:
                width = (columns + 7) // 8
                octet = tl.arange(0, COLUMNS // 8)
                octets = bits_pointer + row[:, None] * (2 * width) + octet[None, :]
                stored = (row < rows)[:, None] & (octet < width)[None, :]
                low = _flags(tl.load(octets, mask=stored, other=0), ROWS, COLUMNS)
                high = _flags(tl.load(octets + width, mask=stored, other=0), ROWS, COLUMNS)
                quarter = (low + 2 * high).to(tl.float32)
                kept += (quarter * 0.25 - 0.375) * _power(kept, LOWEST, -MANTISSA, 1)
            x_hat = kept
            if SHIFTED:
                x_hat -= shift[None, :]
            if SCALED:
                x_hat *= inverse[None, :]
            if RESCUED:
                taken = inside & (slot >= 0)[None, :]
                exact = tl.load(
                    rescued_pointer + row[:, None] * rescued_columns + slot[None, :], mask=taken, other=0.0
                )
                exact = exact.to(tl.float32)
                if MEAN:
                    exact -= mean
                x_hat = tl.where(taken, exact * rstd, x_hat)
        else:
            x_hat = kept
            if MEAN:
                x_hat -= mean
            x_hat *= rstd
        x_hat = tl.where(inside, x_hat, 0.0)
        scaled = grad
        if SCALED:
            scaled *= scale[None, :]
        along = tl.sum(scaled * x_hat, axis=1) / columns
        dx = scaled - x_hat * along[:, None]
        if CENTERED:
            dx -= (tl.sum(scaled, axis=1) / columns)[:, None]
        tl.store(grad_x_pointer + places, (rstd * dx).to(grad_x_pointer.dtype.element_ty), mask=inside)
        by_scale += tl.sum(grad * x_hat, axis=0)
        by_shift += tl.sum(grad, axis=0)
    part = tl.program_id(0).to(tl.int64) * columns + column
    tl.store(scale_parts_pointer + part, by_scale, mask=there)
    tl.store(shift_parts_pointer + part, by_shift, mask=there)


@triton.jit
def _power(y, LOWEST: tl.constexpr, PLUS: tl.constexpr, SIGN: tl.constexpr):
    """The unit in the last place of a number of 16 bits, or 1 over it, made from the exponent of ``y``."""
    exponent = tl.maximum((y.to(tl.int32, bitcast=True) >> 23) & 0xFF, LOWEST)
    return ((SIGN * exponent + PLUS) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _bytes(flags, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Eight flags (0 or 1) each as the bits of a byte, the lowest first."""
    eights = tl.reshape(flags, (ROWS, COLUMNS // 8, 8))
    return tl.sum(eights << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)


@triton.jit
def _flags(octets, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The bits of bytes as flags (0 or 1): undoes ``_bytes``."""
    return tl.reshape((octets.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1, (ROWS, COLUMNS))
