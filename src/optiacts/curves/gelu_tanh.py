"""GELU, tanh approximation: x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (arXiv 1606.08415)."""

import functools

import torch
from torch.nn import functional

from optiacts.curves._curve import Curve, Unimodal, spelled
from optiacts.curves._logistic import logistic

SQRT_2_BY_PI = 0.7978845608028654
CUBIC = 0.044715
# x/2 (1 + tanh u) = x * logistic(2u), which keeps its relative accuracy in the left tail.
SCALE = 2 * SQRT_2_BY_PI


def _gate(x, m):  # type: ignore[no-untyped-def]
    """The gate logistic(2u), its complement, and the first two derivatives of 2u."""
    u = SCALE * (x + CUBIC * x * x * x)
    return logistic(u, m), logistic(-u, m), SCALE * (1 + 3 * CUBIC * x * x), SCALE * 6 * CUBIC * x


def _derivative(x, m):  # type: ignore[no-untyped-def]
    s, r, du, _ = _gate(x, m)
    return s * (1 + x * r * du)


def _second_derivative(x, m):  # type: ignore[no-untyped-def]
    s, r, du, ddu = _gate(x, m)
    return s * r * (2 * du + x * ddu + x * du * du * (r - s))


CURVE = Curve(
    name="gelu_tanh",
    forward=functools.partial(functional.gelu, approximate="tanh"),
    forward_=functools.partial(torch.ops.aten.gelu_, approximate="tanh"),
    function=lambda x, m: x * _gate(x, m)[0],
    derivative=_derivative,
    second_derivative=_second_derivative,
    decoder=Unimodal(tail=(0, 0.6)),  # 1 - f' falls with the cube; this is near it
    forward_out=lambda x, y: torch.ops.aten.gelu.out(x, approximate="tanh", out=y),
    modules=(
        spelled("torch.nn.GELU", approximate="tanh"),
        spelled("transformers.activations.GELUTanh"),
        spelled("transformers.activations.PytorchGELUTanh"),
        spelled("timm.layers.activations.GELUTanh"),
    ),
    functions=(spelled("torch.nn.functional.gelu", approximate="tanh"),),
    ops=("aten::gelu",),
    triton=f"0.5 * z * (1.0 + tanh({SQRT_2_BY_PI} * fma(z * z * z, like(z, {CUBIC}), z)))",
    cuda="0.5f * x * (1.0f + tanhf(0.79788456080286535588f * (x + 0.044715f * (x * x * x))))",
)
