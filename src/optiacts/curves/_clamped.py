"""The identity between two limits, and constant beyond: hardtanh and ReLU6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optiacts.curves._curve import ClosedForm


def told_zero(y: Tensor, left: Tensor, low: float) -> Tensor:
    """Which outputs of 0 are no flat ones at the lower limit 0: a factor of a product that has underflowed."""
    return (y == 0) & ~left if low == 0 else torch.zeros_like(left)


def between(low: float, high: float) -> dict[str, Any]:
    """The mathematics and the decoder, as arguments of ``Curve``: an output between the limits is its input."""
    return {
        "function": lambda x, m: x.clamp(low, high),
        "derivative": lambda x, m: ((x > low) & (x < high)) + 0 * x,
        "second_derivative": lambda x, m: 0 * x,
        "decoder": ClosedForm(
            slope=lambda y, left: (((y > low) & (y < high)) | told_zero(y, left, low)) + 0 * y,
            inverse=lambda y, left: y,
            backward=lambda grad, y: torch.ops.aten.hardtanh_backward(grad, y, low, high),
            triton=f"where((y > {low!r}) & (y < {high!r}) | (y == 0.0) & ~left & {low == 0}, like(y, 1.0), 0.0)",
            zero_is_flat=low == 0 or high == 0,
        ),
        "kinks": (low, high),
    }
