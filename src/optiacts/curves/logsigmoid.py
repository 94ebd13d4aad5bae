"""LogSigmoid: log(logistic(x)). Its slope is 1 - exp(y)."""

import math

import torch
from torch.nn import functional

from optiacts.curves._curve import ClosedForm, Curve, Regions, spelled

CURVE = Curve(
    name="logsigmoid",
    forward=functional.logsigmoid,
    forward_=lambda x: x.copy_(functional.logsigmoid(x)),
    function=lambda x, m: -torch.logaddexp(-x, torch.zeros_like(x)),
    derivative=lambda x, m: torch.sigmoid(-x),
    second_derivative=lambda x, m: -torch.sigmoid(x) * torch.sigmoid(-x),
    decoder=ClosedForm(
        slope=lambda y, left: torch.expm1(y).neg_(),
        inverse=lambda y, left: y - torch.log(-torch.expm1(y.clamp(max=0))),
        regions=Regions(sign=(-1.0, 1.0), end=(-math.inf, math.inf)),
        triton="-expm1(y)",
    ),
    holds=2,  # the input, and on CPU a buffer of its size
    modules=(spelled("torch.nn.LogSigmoid"),),
    functions=(spelled("torch.nn.functional.logsigmoid"),),
    ops=("aten::log_sigmoid",),
)
