"""Hardshrink: x, and 0 where |x| <= lambd."""

import torch
from torch.nn import functional

from optiacts.curves._curve import ClosedForm, Curve, CurveError, Family, spelled


def make(lambd: float = 0.5) -> Curve:
    """Hardshrink with this limit: above 0."""
    if not lambd > 0:
        raise CurveError(f"hardshrink: lambd must be above 0 for its output to tell its slope; got {lambd}")
    return Curve(
        name="hardshrink",
        forward=lambda x: functional.hardshrink(x, lambd),
        forward_=lambda x: x.copy_(functional.hardshrink(x, lambd)),
        function=lambda x, m: x * (abs(x) > lambd),
        derivative=lambda x, m: (abs(x) > lambd) + 0 * x,
        second_derivative=lambda x, m: 0 * x,
        decoder=ClosedForm(
            slope=lambda y, left: ~left + 0 * y,
            inverse=lambda y, left: y,
            backward=lambda grad, y: torch.ops.aten.hardshrink_backward(grad, y, 0),
            zero_is_flat=True,
            scale_free=True,
            survives_dropout=True,
            triton="where(left, 0.0, like(y, 1.0))",
        ),
        kinks=(-lambd, lambd),
        modules=(spelled("torch.nn.Hardshrink", lambd=lambd),),
        ops=("aten::hardshrink",),
    )


FAMILY = Family(
    make, functions=("torch.nn.functional.hardshrink",), modules=("torch.nn.Hardshrink",), ops=("aten::hardshrink",)
)
