"""ReLU^2: max(x, 0)^2 (arXiv 2109.08668). Its slope is 2 sqrt(y). Written ``relu(x) ** 2`` or in other ways."""

import math

import torch
from torch import Tensor

from optiacts.curves._curve import ClosedForm, Curve, Regions, spelled


def _slope(y: Tensor, left: Tensor) -> Tensor:
    # an output that has overflowed stands for the largest number that it can be
    return y.clamp(0, torch.finfo(y.dtype).max).sqrt_().mul_(2)


CURVE = Curve(
    name="relu_squared",
    forward=lambda x: torch.relu(x).square(),
    forward_=lambda x: torch.relu_(x).square_(),
    function=lambda x, m: x.clamp(min=0) ** 2,
    derivative=lambda x, m: 2 * x.clamp(min=0),
    second_derivative=lambda x, m: 2 * (x > 0) + 0 * x,
    decoder=ClosedForm(
        slope=_slope,
        inverse=lambda y, left: y.clamp(min=0).sqrt(),
        zero_is_flat=True,
        survives_dropout=True,
        triton="2.0 * tl.sqrt(clamp(y, 0.0, most))",
        regions=Regions(sign=(1.0, -1.0), end=(math.inf, -math.inf), split=0.0),
    ),
    holds=1,
    modules=(spelled("transformers.activations.ReLUSquaredActivation"),),
)
