"""Hardswish: x times hard sigmoid of x (arXiv 1905.02244). Between -3 and 3 its slope is +-sqrt(1/4 + 2 y / 3)."""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from optiacts.curves._curve import ClosedForm, Curve, Regions, spelled


def _slope(y: Tensor, left: Tensor) -> Tensor:
    inside = y.mul(2 / 3).add_(0.25).clamp_(min=0).sqrt_()
    return torch.where(left, torch.where(y == 0, 0.0, -inside), torch.where(y >= 3, 1.0, inside))


def _inverse(y: Tensor, left: Tensor) -> Tensor:
    root = (2.25 + 6 * y).clamp(min=0).sqrt()
    return torch.where(left, -1.5 - root, torch.where(y >= 3, y, root - 1.5))


CURVE = Curve(
    name="hardswish",
    forward=functional.hardswish,
    forward_=functools.partial(functional.hardswish, inplace=True),
    function=lambda x, m: x * (x > -3) * ((x + 3) * (x < 3) / 6 + (x >= 3)),
    derivative=lambda x, m: (x > -3) * (x < 3) * (x / 3 + 0.5) + (x >= 3) * 1.0,
    second_derivative=lambda x, m: (x > -3) * (x < 3) / 3 + 0 * x,
    decoder=ClosedForm(
        _slope, _inverse, side_bits=1, zero_is_flat=True, regions=Regions(start=(-0.375, -0.375), end=(3.0, 0.0))
    ),
    kinks=(-3.0, 3.0),
    modules=(spelled("torch.nn.Hardswish"),),
    functions=(spelled("torch.nn.functional.hardswish"),),
    ops=("aten::hardswish",),
)
