"""The identity between two limits, and constant beyond: hardtanh and ReLU6."""

from __future__ import annotations

from typing import Any

import torch

from optiacts.curves._curve import ClosedForm


def between(low: float, high: float) -> dict[str, Any]:
    """The mathematics and the decoder, as arguments of ``Curve``: an output between the limits is its input."""
    return {
        "function": lambda x, m: x.clamp(low, high),
        "derivative": lambda x, m: ((x > low) & (x < high)) + 0 * x,
        "second_derivative": lambda x, m: 0 * x,
        "decoder": ClosedForm(
            slope=lambda y, left: ((y > low) & (y < high)) + 0 * y,
            inverse=lambda y, left: y,
            backward=lambda grad, y: torch.ops.aten.hardtanh_backward(grad, y, low, high),
            zero_is_flat=low == 0 or high == 0,
        ),
        "kinks": (low, high),
    }
