"""Leaky ReLU: x where x > 0, else negative_slope x. Its slope follows from the sign of its output."""

import torch
from torch.nn import functional

from optiacts.curves._curve import ClosedForm, Curve, CurveError, Family, LeftOfZero, spelled

LEAST, MOST = 1e-4, 1e4  # an output that underflows or overflows on its way through 16 bits has lost its input


def make(negative_slope: float = 0.01) -> Curve:
    """Leaky ReLU with this slope left of 0."""
    if not LEAST <= negative_slope <= MOST:
        raise CurveError(
            f"leaky_relu: negative_slope must be between {LEAST} and {MOST:g} for its output to tell its slope; "
            f"got {negative_slope}"
        )
    return Curve(
        name="leaky_relu",
        forward=lambda x: functional.leaky_relu(x, negative_slope),
        forward_=lambda x: functional.leaky_relu_(x, negative_slope),
        function=lambda x, m: torch.where(x > 0, x, negative_slope * x),
        derivative=lambda x, m: torch.where(x > 0, 1.0, negative_slope * torch.ones_like(x)),
        second_derivative=lambda x, m: 0 * x,
        decoder=ClosedForm(
            slope=lambda y, left: torch.where(y > 0, torch.ones_like(y), negative_slope),
            inverse=lambda y, left: torch.where(y > 0, y, y / negative_slope),
            backward=lambda grad, y: torch.ops.aten.leaky_relu_backward(grad, y, negative_slope, True),
            scale_free=True,
            triton=f"where(y > 0.0, 1.0, like(y, {float(negative_slope)!r}))",
        ),
        inplace_keeps_output=True,
        tells_input=negative_slope >= 1e-3,
        left_of_zero=LeftOfZero(negative_slope),
        triton_input=f"tl.where(y > 0.0, y, y * {1 / negative_slope!r})",
        triton_slope=f"tl.where(z > 0.0, 1.0, {negative_slope!r})",
        modules=(spelled("torch.nn.LeakyReLU", negative_slope=negative_slope),),
        ops=("aten::leaky_relu",),
    )


FAMILY = Family(
    make,
    functions=("torch.nn.functional.leaky_relu",),
    modules=("torch.nn.LeakyReLU",),
    ops=("aten::leaky_relu",),
)
