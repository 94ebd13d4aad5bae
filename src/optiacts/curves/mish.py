"""Mish: x * tanh(softplus(x)) (arXiv 1908.08681)."""

import functools

import torch
from torch.nn import functional

from optiacts.curves._curve import Curve, Unimodal, spelled
from optiacts.curves._logistic import logistic


def _gate(x, m):  # type: ignore[no-untyped-def]
    return m.tanh(m.log1p(m.exp(x)))


def _derivative(x, m):  # type: ignore[no-untyped-def]
    t = _gate(x, m)
    return t + x * (1 - t * t) * logistic(x, m)


def _second_derivative(x, m):  # type: ignore[no-untyped-def]
    t, s = _gate(x, m), logistic(x, m)
    return (1 - t * t) * s * (2 + x * (1 - s - 2 * t * s))


CURVE = Curve(
    name="mish",
    forward=functional.mish,
    forward_=functools.partial(functional.mish, inplace=True),
    function=lambda x, m: x * _gate(x, m),
    derivative=_derivative,
    second_derivative=_second_derivative,
    decoder=Unimodal(tail=(2, 0)),
    forward_out=lambda x, y: torch.ops.aten.mish.out(x, out=y),
    tells_input=True,
    modules=(
        spelled("torch.nn.Mish"),
        spelled("transformers.activations.MishActivation"),
        spelled("timm.layers.activations.Mish"),
    ),
    functions=(spelled("torch.nn.functional.mish"),),
    ops=("aten::mish",),
    triton="z * tanh(log1p(exp(z)))",
    # tanh(softplus(z)) = (s - 2) / s with s = u (u + 2) + 2, and f' = (s - 2) / s + 4 z u (u + 1) / s^2
    triton_slope="1.0 + (4.0 * z * u * (u + 1.0) / (u * (u + 2.0) + 2.0) - 2.0) / (u * (u + 2.0) + 2.0)",
    cuda="x * tanhf(log1pf(expf(x)))",
)
