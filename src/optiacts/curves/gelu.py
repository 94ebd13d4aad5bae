"""GELU, exact: x * Phi(x), Phi the normal distribution's cumulative function (arXiv 1606.08415)."""

import torch
from torch.nn import functional

from optiacts.curves._curve import Curve

SQRT_HALF = 0.7071067811865476
INV_SQRT_TAU = 0.3989422804014327  # 1 / sqrt(2 pi): the normal density at 0


def _cdf(x, m):  # type: ignore[no-untyped-def]
    return m.erfc(-x * SQRT_HALF) / 2


def _density(x, m):  # type: ignore[no-untyped-def]
    return INV_SQRT_TAU * m.exp(-x * x / 2)


CURVE = Curve(
    name="gelu",
    forward=functional.gelu,
    forward_=torch.ops.aten.gelu_,
    function=lambda x, m: x * _cdf(x, m),
    derivative=lambda x, m: _cdf(x, m) + x * _density(x, m),
    second_derivative=lambda x, m: (2 - x * x) * _density(x, m),
    forward_out=lambda x, y: torch.ops.aten.gelu.out(x, out=y),
)
