"""Threshold: x where x > threshold, else a value no larger than it."""

import torch
from torch.nn import functional

from optiacts.curves._curve import ClosedForm, Curve, CurveError, Family, spelled


def make(threshold: float = 0.0, value: float = 0.0) -> Curve:
    """Threshold with these numbers."""
    if not value <= threshold:
        raise CurveError(f"threshold: value must not exceed threshold for its output to tell its slope; got {value}")
    return Curve(
        name="threshold",
        forward=lambda x: functional.threshold(x, threshold, value),
        forward_=lambda x: functional.threshold(x, threshold, value, inplace=True),
        function=lambda x, m: torch.where(x > threshold, x, value),
        derivative=lambda x, m: (x > threshold) + 0 * x,
        second_derivative=lambda x, m: 0 * x,
        decoder=ClosedForm(
            slope=lambda y, left: (y > threshold) + 0 * y,
            inverse=lambda y, left: y,
            backward=lambda grad, y: torch.ops.aten.threshold_backward(grad, y, threshold),
            triton=f"where(y > {float(threshold)!r}, 1.0, like(y, 0.0))",
            zero_is_flat=value == 0 and threshold >= 0,
        ),
        kinks=(threshold,),
        modules=(spelled("torch.nn.Threshold", threshold=threshold, value=value),),
        ops=("aten::threshold",),
    )


FAMILY = Family(
    make, functions=("torch.nn.functional.threshold",), modules=("torch.nn.Threshold",), ops=("aten::threshold",)
)
