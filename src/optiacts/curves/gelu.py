"""GELU, exact: x * Phi(x), Phi the normal distribution's cumulative function (arXiv 1606.08415)."""

import torch
from torch.nn import functional

from optiacts.curves._curve import Curve, Unimodal, spelled

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
    decoder=Unimodal(tail=(0, 0.5)),
    forward_out=lambda x, y: torch.ops.aten.gelu.out(x, out=y),
    modules=(
        spelled("torch.nn.GELU", approximate="none"),
        spelled("transformers.activations.GELUActivation"),
        spelled("timm.layers.activations.GELU"),
    ),
    functions=(spelled("torch.nn.functional.gelu", approximate="none"),),
    ops=("aten::gelu",),
    triton=f"z * 0.5 * (1.0 + erf(z * {SQRT_HALF}))",
    cuda="x * 0.5f * (1.0f + erff(x * 0.70710678118654752440f))",
)
