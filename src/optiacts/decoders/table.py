"""The best decode of 16-bit outputs, as a table over every (output, side bit).

A 16-bit output stands for a whole interval of inputs, wide near the minimum. The table is made by going
through all 65,536 inputs: each entry is the mean of f' over the inputs that lead to it (least RMS error
for x ~ N(0, 1)), moved just as far as needed to keep the worst error at the least possible one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves import Curve, get
from optiacts.decoders import valley
from optiacts.decoders.inverse import derivative_from_output

_PATTERNS = 1 << 16


def every_value(dtype: torch.dtype) -> Tensor:
    """All 65,536 values of a 16-bit ``dtype``, in the order of their bit patterns."""
    return torch.arange(_PATTERNS, dtype=torch.int32, device="cpu").to(torch.int16).view(dtype)


def told(curve: Curve, x: Tensor) -> Tensor:
    """The finite elements of 16-bit ``x``, but for those that are rounded to where the slope jumps."""
    seen = x.isfinite()
    for kink in curve.kinks:
        seen &= (x.double() - kink).abs() > abs(kink) * torch.finfo(x.dtype).eps / 2
    return x[seen]


def table_index(y: Tensor, left: Tensor | None) -> Tensor:
    """Where in the table the decode of (``y``, ``left``) stands: the bits of y, then the left half. int32.

    ``left`` is None for curves that do not use that half.
    """
    index = y.view(torch.int16).to(torch.int32) & (_PATTERNS - 1)
    return index if left is None else index + left.to(torch.int32) * _PATTERNS


def normal_mass(x: Tensor) -> Tensor:
    """The probability that x ~ N(0, 1), rounded to the dtype of ``x``, is that element of ``x``. float64."""
    spacing = (x.double() - torch.nextafter(x, torch.zeros_like(x)).double()).abs()
    return torch.exp(-(x.double() ** 2) / 2) / math.sqrt(2 * math.pi) * spacing


@once
def decode_table(name: str, dtype: torch.dtype) -> Tensor:
    """f' for every output of curve ``name`` in ``dtype`` (bfloat16 or float16): float32, 2 * 65,536 entries.

    No output lies in the valley (see valley.py). For a gated product, whose slot holds gate itself there, such
    an entry is f' of the value that it stands at.

    512 KiB, of which data like N(0, 1) touches a few thousand entries. Made once per process, in about 0.1 s.
    """
    curve = get(name)
    table = _analytic(curve, dtype)
    x = told(curve, every_value(dtype))
    index = table_index(curve.forward(x), curve.left(x) if curve.decoder.side_bits else None).long()
    slope = curve.derivative(x.double(), torch)
    weight = normal_mass(x).clamp(min=1e-300)  # keeps 0/0 out of groups that N(0, 1) never reaches

    zeros = torch.zeros_like(table)
    mean = zeros.index_add(0, index, slope * weight) / zeros.index_add(0, index, weight)
    lowest = zeros.scatter_reduce(0, index, slope, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, index, slope, "amax", include_self=False)
    finite = every_value(dtype).isfinite().repeat(2)
    worst = ((highest - lowest) / 2)[finite].max()  # what has overflowed tells nothing
    best = torch.minimum(torch.maximum(mean, highest - worst), lowest + worst)
    reached = zeros.index_fill(0, index, 1.0).bool()
    table = torch.where(reached, best, table)

    if not curve.decoder.side_bits:
        if curve.zero_is_flat:  # flat outputs of 0 are read from the left half, see ``ClosedForm``
            at = table_index(torch.tensor([0.0, -0.0], dtype=dtype), None).long()
            table[at] = _analytic(curve, dtype)[at]
        return table.float()
    if curve.y_min == 0:
        return table.float()  # its valley is a point
    value = every_value(dtype)
    itself = curve.derivative(value.double(), torch).repeat(2)
    return torch.where(valley.contains(curve, value).repeat(2), itself, table).float()


@once
def slot_table(name: str, dtype: torch.dtype) -> Tensor:
    """What the slot of a gated product tells, in one table: float32, 3 * 65,536 entries.

    The decode table; then act(gate) for every value of a slot that does not hold up: the value itself, unless it
    lies in the valley and is gate.
    """
    curve, value = get(name), every_value(dtype)
    output = value
    if curve.decoder.side_bits:
        output = torch.where(valley.contains(curve, value), curve.forward(value), value)
    return torch.cat([decode_table(name, dtype), output.float()])


def _analytic(curve: Curve, dtype: torch.dtype) -> Tensor:
    """f' at the exact output: for outputs that no input leads to here, but might on another device."""
    y = every_value(dtype).double()
    left = torch.ones_like(y, dtype=torch.bool)
    return torch.cat([derivative_from_output(curve, y, ~left), derivative_from_output(curve, y, left)])
