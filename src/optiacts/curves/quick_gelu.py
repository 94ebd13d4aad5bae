"""QuickGELU: x * logistic(1.702 x), CLIP's sigmoid approximation of GELU (arXiv 1606.08415).

PyTorch has no such op; the forward is the expression that transformers and CLIP evaluate, so in a
16-bit dtype its three steps are each rounded, as they are there.
"""

import torch
from torch import Tensor

from optiacts.curves import _logistic
from optiacts.curves._curve import Curve, Unimodal, spelled

SLOPE = 1.702


def _forward(x: Tensor) -> Tensor:
    return x * torch.sigmoid(SLOPE * x)


def _forward_(x: Tensor) -> Tensor:
    return x.mul_(torch.sigmoid(SLOPE * x))


CURVE = Curve(
    name="quick_gelu",
    forward=_forward,
    forward_=_forward_,
    function=_logistic.function(SLOPE),
    derivative=_logistic.derivative(SLOPE),
    second_derivative=_logistic.second_derivative(SLOPE),
    decoder=Unimodal(tail=(SLOPE, 0)),
    forward_out=lambda x, y: torch.mul(x, SLOPE, out=y).sigmoid_().mul_(x),
    modules=(
        spelled("transformers.activations.QuickGELUActivation"),
        spelled("timm.layers.activations.QuickGELU"),
    ),
    triton=f"z * rounded(divide(like(z, 1.0), 1.0 + exp(-rounded(z * {SLOPE}, x))), x)",
    cuda="__fmul_rn(x, 1.0f / (1.0f + expf(-__fmul_rn(1.702f, x))))",
)
