"""Softshrink: x drawn towards 0 by lambd, and 0 where |x| <= lambd."""

import torch
from torch.nn import functional

from optiacts.curves._curve import ClosedForm, Curve, CurveError, Family, spelled


def make(lambd: float = 0.5) -> Curve:
    """Softshrink by this much: above 0."""
    if not lambd > 0:
        raise CurveError(f"softshrink: lambd must be above 0 for its output to tell its slope; got {lambd}")
    return Curve(
        name="softshrink",
        forward=lambda x: functional.softshrink(x, lambd),
        forward_=lambda x: x.copy_(functional.softshrink(x, lambd)),
        function=lambda x, m: x - x.clamp(-lambd, lambd),
        derivative=lambda x, m: (abs(x) > lambd) + 0 * x,
        second_derivative=lambda x, m: 0 * x,
        decoder=ClosedForm(
            slope=lambda y, left: ~left + 0 * y,
            inverse=lambda y, left: y + lambd * torch.sign(y),
            backward=lambda grad, y: torch.ops.aten.softshrink_backward(grad, y, 0),
            zero_is_flat=True,
            scale_free=True,
            survives_dropout=True,
            triton="where(left, 0.0, like(y, 1.0))",
        ),
        kinks=(-lambd, lambd),
        modules=(spelled("torch.nn.Softshrink", lambd=lambd),),
        ops=("aten::softshrink",),
    )


FAMILY = Family(
    make, functions=("torch.nn.functional.softshrink",), modules=("torch.nn.Softshrink",), ops=("aten::softshrink",)
)
