"""The kernels of chains, a norm and the activation after it. Their mathematics is that of eager_chain.py.

A tile is ``(OUTER, UNITS, UNIT)`` elements. Its last two dimensions lie side by side in memory, a unit being the
elements whose side bits share a word (see tiles.py). ``INPUT`` and ``SLOPE`` are the curve's: z from the output and
the branch, f' from z and the output.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optiacts.backends.triton import tiles
from optiacts.backends.triton.elementary import divide


@triton.jit
def chain_kernel(
    grad_pointer,
    y_pointer,
    bits_pointer,
    rstd_pointer,
    mean_pointer,
    scale_pointer,
    shift_pointer,
    slot_pointer,
    rescued_pointer,
    grad_x_pointer,
    sums_pointer,
    together_pointer,
    samples,
    channels,
    positions,
    groups,
    rescued_channels,
    span,
    per_element,
    SUMS: tl.constexpr,
    GRADIENT: tl.constexpr,
    STATISTICS: tl.constexpr,
    CENTERED: tl.constexpr,
    LAST: tl.constexpr,
    INPUT: tl.constexpr,
    SLOPE: tl.constexpr,
    OUTER: tl.constexpr,
    UNITS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One pass over a tensor: of some channels of a sample, the next ``span`` positions for each program of a row.

    With SUMS: this program's part of Σ g and Σ g x̂ of each channel of each sample; for STATISTICS of "rows" also of
    Σ w g and Σ w g x̂. With GRADIENT: dx = rstd (w g - mean(w g) - x̂ mean(w g x̂)), from the sums ``together`` over
    what is normalised together. Of "batch" these are without the w, and of "given" there are none.

    Channels are OUTER, or with LAST the other two dimensions, and the program goes along positions with a tile.
    """
    split, splits = tl.program_id(1), tl.num_programs(1)
    outer = tl.arange(0, OUTER)[:, None, None]
    unit, place = tl.arange(0, UNITS)[None, :, None], tl.arange(0, UNIT)[None, None, :]
    if LAST:
        blocks = tl.cdiv(channels, UNITS * UNIT)
        unit += (tl.program_id(0) % blocks) * UNITS
        sample = (tl.program_id(0) // blocks).to(tl.int64)
        channel = unit * UNIT + place
        exists = channel < channels
        line, width, step = sample * channels + channel, channels, OUTER
    else:
        line = tl.program_id(0).to(tl.int64) * OUTER + outer
        exists = line < samples * channels
        sample, channel = line // channels, (line % channels).to(tl.int32)
        width, step = positions, UNITS * UNIT
    statistic = channel
    count = channels
    if STATISTICS == "rows":
        statistic = sample * groups + channel // (channels // groups)
        count = samples * groups
    scale = tl.load(scale_pointer + channel, mask=exists, other=1.0)
    shift = tl.load(shift_pointer + channel, mask=exists, other=0.0)
    rstd = tl.load(rstd_pointer + statistic, mask=exists, other=0.0)
    inverse = divide(1.0, scale)
    if slot_pointer is not None:
        slot = tl.load(slot_pointer + channel, mask=exists, other=-1)
        if mean_pointer is not None:
            mean = tl.load(mean_pointer + statistic, mask=exists, other=0.0)
    if GRADIENT:
        of_g, of_x_hat, of_one = rstd * scale, tl.zeros_like(rstd), tl.zeros_like(rstd)
        if STATISTICS != "given":
            factor = rstd * per_element
            if STATISTICS == "batch":
                factor *= scale
            of_x_hat = factor * tl.load(together_pointer + count + statistic, mask=exists, other=0.0)
            if CENTERED:
                of_one = factor * tl.load(together_pointer + statistic, mask=exists, other=0.0)
    by_shift = tl.zeros((OUTER, UNITS, UNIT), tl.float32)
    by_scale = tl.zeros((OUTER, UNITS, UNIT), tl.float32)
    first = split * span
    for start in range(first, tl.minimum(first + span, positions), step):
        if LAST:
            position = start + outer
            row, column_unit = sample * positions + position, unit
            word_inside = (position < positions) & (unit * UNIT < width)
        else:
            row, column_unit = line, start // UNIT + unit
            position = column_unit * UNIT + place
            word_inside = exists & (column_unit * UNIT < width)
        inside = exists & (position < positions)
        column = column_unit * UNIT + place
        word = row * tl.cdiv(width, UNIT) + column_unit
        g, x_hat = _decoded(
            *(grad_pointer, y_pointer, bits_pointer, row * width + column, inside, word, word_inside),
            *(shift, inverse, INPUT, SLOPE, UNIT),
        )
        if slot_pointer is not None:
            if LAST:
                from_rescued = row * rescued_channels + slot
            else:
                from_rescued = (sample * rescued_channels + slot) * positions + position
            exact = tl.load(rescued_pointer + from_rescued, mask=inside & (slot >= 0), other=0.0).to(tl.float32)
            if mean_pointer is not None:
                exact -= mean
            x_hat = tl.where(slot >= 0, exact * rstd, x_hat)
        if SUMS:
            by_shift += g
            by_scale += g * tl.where(inside, x_hat, 0.0)
        if GRADIENT:
            dx = of_g * g - x_hat * of_x_hat - of_one
            place_x = grad_x_pointer + row * width + column
            tl.store(place_x, dx.to(grad_x_pointer.dtype.element_ty), mask=inside)
    if SUMS:
        if LAST:
            by_shift, by_scale = tl.sum(by_shift, axis=0)[None, :, :], tl.sum(by_scale, axis=0)[None, :, :]
        else:
            by_shift = tl.sum(tl.sum(by_shift, axis=2), axis=1)[:, None, None]
            by_scale = tl.sum(tl.sum(by_scale, axis=2), axis=1)[:, None, None]
        part = sums_pointer + line * splits + split
        next_part = tl.full((), samples, tl.int64) * channels * splits  # 1 is no tensor, but a constant
        tl.store(part, by_shift, mask=exists)
        tl.store(part + next_part, by_scale, mask=exists)
        if STATISTICS == "rows":
            tl.store(part + 2 * next_part, by_shift * scale, mask=exists)
            tl.store(part + 3 * next_part, by_scale * scale, mask=exists)


@triton.jit
def whole_rows_kernel(
    grad_pointer,
    y_pointer,
    bits_pointer,
    rstd_pointer,
    mean_pointer,
    scale_pointer,
    shift_pointer,
    slot_pointer,
    rescued_pointer,
    grad_x_pointer,
    sums_pointer,
    rows,
    columns,
    rescued_columns,
    CENTERED: tl.constexpr,
    INPUT: tl.constexpr,
    SLOPE: tl.constexpr,
    OUTER: tl.constexpr,
    UNITS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Everything in one pass, where a row is normalised by itself and fits into a program: see norm_kernels.py."""
    unit, place = tl.arange(0, UNITS)[None, :, None], tl.arange(0, UNIT)[None, None, :]
    column = unit * UNIT + place
    exists = column < columns
    scale = tl.load(scale_pointer + column, mask=exists, other=1.0)
    shift = tl.load(shift_pointer + column, mask=exists, other=0.0)
    inverse = divide(1.0, scale)
    if slot_pointer is not None:
        slot = tl.load(slot_pointer + column, mask=exists, other=-1)
    by_shift = tl.zeros((1, UNITS, UNIT), tl.float32)
    by_scale = tl.zeros((1, UNITS, UNIT), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, OUTER), tl.num_programs(0)):
        row = (tile * OUTER + tl.arange(0, OUTER).to(tl.int64))[:, None, None]
        row_inside = row < rows
        inside = row_inside & exists
        word, word_inside = row * tl.cdiv(columns, UNIT) + unit, row_inside & (unit * UNIT < columns)
        rstd = tl.load(rstd_pointer + row, mask=row_inside, other=0.0)
        g, x_hat = _decoded(
            *(grad_pointer, y_pointer, bits_pointer, row * columns + column, inside, word, word_inside),
            *(shift, inverse, INPUT, SLOPE, UNIT),
        )
        if slot_pointer is not None:
            from_rescued = rescued_pointer + row * rescued_columns + slot
            exact = tl.load(from_rescued, mask=inside & (slot >= 0), other=0.0).to(tl.float32)
            if mean_pointer is not None:
                exact -= tl.load(mean_pointer + row, mask=row_inside, other=0.0)
            x_hat = tl.where(slot >= 0, exact * rstd, x_hat)
        x_hat = tl.where(inside, x_hat, 0.0)
        scaled = g * scale
        dx = scaled - x_hat * (_of_row(scaled * x_hat) / columns)
        if CENTERED:
            dx -= _of_row(scaled) / columns
        place_x = grad_x_pointer + row * columns + column
        tl.store(place_x, (rstd * dx).to(grad_x_pointer.dtype.element_ty), mask=inside)
        by_shift += tl.sum(g, axis=0)[None, :, :]
        by_scale += tl.sum(g * x_hat, axis=0)[None, :, :]
    part = sums_pointer + column.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(part, by_shift, mask=exists)
    tl.store(part + tl.full((), columns, tl.int64) * tl.num_programs(0), by_scale, mask=exists)


@triton.jit
def excess_kernel(z_pointer, sums_pointer, elements, furthest, BLOCK: tl.constexpr):
    """This program's part of the sum of the squares of how far elements lie left of ``-furthest``. No NaN does."""
    total = tl.zeros((BLOCK,), tl.float32)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK, elements, step):
        place = first + tl.arange(0, BLOCK)
        z = tl.load(z_pointer + place, mask=place < elements, other=0.0).to(tl.float32)
        below = -furthest - z
        below = tl.where(below > 0.0, below, 0.0)
        total += below * below
    tl.store(sums_pointer + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _of_row(tile):
    return tl.sum(tl.sum(tile, axis=2), axis=1)[:, None, None]


@triton.jit
def _decoded(
    grad_pointer,
    y_pointer,
    bits_pointer,
    places,
    inside,
    word,
    word_inside,
    shift,
    inverse,
    INPUT: tl.constexpr,
    SLOPE: tl.constexpr,
    UNIT: tl.constexpr,
):
    """g = grad f'(z) and x̂ = (z - shift) inverse of a tile; g is 0 outside of it."""
    grad = tl.load(grad_pointer + places, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_pointer + places, mask=inside, other=0.0).to(tl.float32)
    left = y < 0.0
    if bits_pointer is not None:
        words = tl.load(tiles.words(bits_pointer, UNIT) + word, mask=word_inside, other=0).to(tl.int32)
        left = (words & (1 << tl.arange(0, UNIT))[None, None, :]) != 0
    z = INPUT(y, left)
    return grad * SLOPE(z, y), (z - shift) * inverse
