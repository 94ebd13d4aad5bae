"""Softsign: x / (1 + |x|). Its slope is (1 - |y|)^2."""

import torch
from torch.nn import functional

from optiacts.curves._curve import ClosedForm, Curve, Regions, spelled

CURVE = Curve(
    name="softsign",
    forward=functional.softsign,
    forward_=lambda x: x.div_(x.abs().add_(1)),
    function=lambda x, m: x / (1 + abs(x)),
    derivative=lambda x, m: 1 / (1 + abs(x)) ** 2,
    second_derivative=lambda x, m: -2 * torch.sign(x) / (1 + abs(x)) ** 3,
    decoder=ClosedForm(
        slope=lambda y, left: y.abs().neg_().add_(1).square_(),
        inverse=lambda y, left: y / (1 - y.abs()).clamp(min=0),
        regions=Regions(sign=(1.0, -1.0), end=(1.0, -1.0), split=0.0),
        triton="(1.0 - tl.abs(y)) * (1.0 - tl.abs(y))",
    ),
    modules=(spelled("torch.nn.Softsign"),),
    functions=(spelled("torch.nn.functional.softsign"),),
)
