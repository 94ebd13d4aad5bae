"""SiLU, also called swish: x * logistic(x) (arXiv 1702.03118)."""

import functools

import torch
from torch.nn import functional

from optiacts.curves import _logistic
from optiacts.curves._curve import Curve, Unimodal, spelled

CURVE = Curve(
    name="silu",
    forward=functional.silu,
    forward_=functools.partial(functional.silu, inplace=True),
    function=_logistic.function(1.0),
    derivative=_logistic.derivative(1.0),
    second_derivative=_logistic.second_derivative(1.0),
    decoder=Unimodal(tail=(1, 0)),
    forward_out=lambda x, y: torch.ops.aten.silu.out(x, out=y),
    tells_input=True,
    modules=(
        spelled("torch.nn.SiLU"),
        spelled("transformers.activations.SiLUActivation"),
        spelled("timm.layers.activations.Swish"),
    ),
    functions=(spelled("torch.nn.functional.silu"),),
    ops=("aten::silu",),
    triton="divide(z, 1.0 + exp(-z))",
    triton_slope="(u + y) / (1.0 + u)",
    cuda="x / (1.0f + expf(-x))",
    native="silu",
)
