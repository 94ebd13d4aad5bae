"""The exponential linear units: scale x where x > 0, else scale alpha (exp(input_scale x) - 1). ELU, CELU, SELU."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from optiacts.curves._curve import ClosedForm, CurveError, LeftOfZero, Regions


def linear_unit(name: str, alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> dict[str, Any]:
    """The mathematics and the decoder, as arguments of ``Curve``.

    Left of 0 the slope is input_scale (y + scale alpha), which PyTorch's own backward evaluates from the output
    where it has overwritten the input.
    """
    if not (0 <= alpha < 1e4 and input_scale > 0 and input_scale < 1e4):
        wanted = "at least 0" if input_scale == 1.0 else "at least 0.0001"
        raise CurveError(
            f"{name}: alpha must be {wanted} and below 10000 for its output to tell its slope; got {alpha}"
        )
    depth = scale * alpha

    def function(x: Any, m: Any) -> Any:
        return torch.where(x > 0, scale * x, depth * torch.expm1(input_scale * x.clamp(max=0)))

    def derivative(x: Any, m: Any) -> Any:
        return torch.where(x > 0, scale, depth * input_scale * torch.exp(input_scale * x.clamp(max=0)))

    def second_derivative(x: Any, m: Any) -> Any:
        return torch.where(x > 0, 0.0, depth * input_scale**2 * torch.exp(input_scale * x.clamp(max=0)))

    def slope(y: Tensor, left: Tensor) -> Tensor:
        return torch.where(y > 0, scale, input_scale * (y + depth))

    def inverse(y: Tensor, left: Tensor) -> Tensor:
        below = torch.log1p((y / depth if depth else torch.zeros_like(y)).clamp(min=-1, max=0)) / input_scale
        return torch.where(y > 0, y / scale, below)

    def backward(grad: Tensor, y: Tensor) -> Tensor:
        return torch.ops.aten.elu_backward(grad, alpha, scale, input_scale, True, y)

    return {
        "function": function,
        "derivative": derivative,
        "second_derivative": second_derivative,
        "decoder": ClosedForm(
            slope,
            inverse,
            backward=backward,
            zero_is_flat=depth == 0,
            regions=Regions(sign=(1.0, -1.0), end=(math.inf, -depth), split=0.0),
            triton=f"where(y > 0.0, {float(scale)!r}, {float(input_scale)!r} * (y + {float(depth)!r}))",
        ),
        "inplace_keeps_output": True,
        **(_for_norms(depth, input_scale) if depth >= 0.1 and scale == 1.0 else {}),
    }


def _for_norms(depth: float, input_scale: float) -> dict[str, Any]:
    """What a norm before the activation goes by."""
    below = f"clamp(tl.log(1.0 + y * {1 / depth!r}), lowest, 0.0) * {1 / input_scale!r}"
    return {
        "tells_input": True,
        "left_of_zero": LeftOfZero(depth * input_scale, depth),
        "triton_input": f"tl.where(y > 0.0, y, {below})",
        "triton_slope": f"tl.where(z > 0.0, 1.0, {input_scale!r} * (y + {depth!r}))",
    }
