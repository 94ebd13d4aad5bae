"""Laplace: the normal distribution's cumulative function with the mean sqrt(1/2) and the deviation
sqrt(1 / (4 pi)), an approximation of ReLU^2 with bounded slope (arXiv 2209.10655). The forward is the expression of
transformers."""

import math

import torch
from torch import Tensor

from optiacts.curves._curve import ClosedForm, Curve, Regions, spelled

MEAN, DEVIATION = 0.707107, 0.282095
WIDTH = DEVIATION * math.sqrt(2.0)
PEAK = 1 / (WIDTH * math.sqrt(math.pi))  # the density at the mean


def _forward(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - MEAN).div(WIDTH)))


def _depth(y: Tensor) -> Tensor:
    """(x - MEAN) / WIDTH."""
    return torch.erfinv((2 * y - 1).clamp(-1, 1))


CURVE = Curve(
    name="laplace",
    forward=_forward,
    forward_=lambda x: x.copy_(_forward(x)),
    function=lambda x, m: m.erfc((MEAN - x) / WIDTH) / 2,
    derivative=lambda x, m: PEAK * m.exp(-(((x - MEAN) / WIDTH) ** 2)),
    second_derivative=lambda x, m: -2 / WIDTH**2 * (x - MEAN) * PEAK * m.exp(-(((x - MEAN) / WIDTH) ** 2)),
    decoder=ClosedForm(
        slope=lambda y, left: _depth(y).square_().neg_().exp_().mul_(PEAK),
        inverse=lambda y, left: MEAN + WIDTH * _depth(y),
        regions=Regions(end=(1.0, math.inf)),
    ),
    gates=False,  # where it is nearly 1 a 16-bit output tells the slope too badly for that
    holds=1,
    modules=(spelled("transformers.activations.LaplaceActivation"),),
)
