"""A clamp that keeps one bit per element, whether the gradient passes, where PyTorch keeps its input.

    optiacts::clamp_forward(Tensor x, float? min, float? max) -> (Tensor y, Tensor bits)
    optiacts::clamp_backward(Tensor grad, Tensor bits) -> Tensor

A bit is set where the gradient does not pass. It is told by PyTorch's own comparisons, so that an element exactly at
a bound, and a NaN, get what PyTorch gives them. Bits are packed along the last dimension: see ``optiacts.packing``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from optiacts import backends
from optiacts._torch import run
from optiacts.ops import library
from optiacts.ops.functions import differentiable
from optiacts.ops.plain import Plain, plain
from optiacts.packing import packed_shape, unpack


def clamp(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """``torch.clamp(x, low, high)``, which keeps bits."""
    return run(OptiActsClamp, x, low, high)[0]


def _forward(
    x: Tensor, low: float | None, high: float | None, select: Any = backends.select_for_dropout
) -> tuple[Tensor, Tensor]:
    passes = x >= low if low is not None else None
    if high is not None:
        passes = x <= high if passes is None else passes.logical_and_(x <= high)
    assert passes is not None
    return torch.clamp(x, low, high), select(passes).pack_dropped(passes)


def _fake_forward(x: Tensor, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
    return torch.clamp(x, low, high), x.new_empty(packed_shape(x.shape), dtype=torch.uint8)


def _backward(grad: Tensor, bits: Tensor) -> Tensor:
    return torch.where(unpack(bits, grad.shape), 0.0, grad)


def _check_bounds(x: Tensor, low: float | None, high: float | None) -> None:
    if low is None and high is None:
        raise ValueError("clamp needs a min or a max; got neither")


def _check_bits(grad: Tensor, bits: Tensor) -> None:
    wanted = packed_shape(grad.shape)
    if (bits.dtype, bits.shape, bits.device) != (torch.uint8, wanted, grad.device):
        raise ValueError(
            f"bits must be uint8 of shape {wanted} on {grad.device} for a gradient of shape {tuple(grad.shape)}; "
            f"got {bits.dtype} of shape {tuple(bits.shape)} on {bits.device}"
        )


clamp_forward = library.declare(
    "clamp_forward(Tensor x, float? min, float? max) -> (Tensor, Tensor)",
    _forward,
    check=_check_bounds,
    fake=_fake_forward,
    sharding=lambda *_: (),
    traced=functools.partial(_forward, select=backends.traced_dropout),
)
clamp_backward = library.declare(
    "clamp_backward(Tensor grad, Tensor bits) -> Tensor",
    _backward,
    check=_check_bits,
    fake=_backward,
    sharding=lambda *_: (),
    traced=_backward,
)


class OptiActsClamp(torch.autograd.Function):
    """x -> (y, bits)."""

    @staticmethod
    def forward(x: Tensor, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
        return library.call(clamp_forward, x, low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        (bits,) = ctx.saved_tensors
        if grad is None:
            return None, None, None
        if differentiable():
            return _backward(grad, bits), None, None  # which autograd differentiates by itself
        return library.call(clamp_backward, grad, bits), None, None


def _plain_forward(x: Tensor, low: float | None, high: float | None) -> Plain:
    y, bits = _forward(x, low, high)
    return y, (bits,), None


def _plain_backward(_: None, needed: Any, grad: Tensor, bits: Tensor) -> tuple[Tensor, None, None]:
    return library.directly(clamp_backward, grad, bits), None, None


def _watched_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
    return OptiActsClamp.backward(ctx, grad, None)


plain_clamp = plain("OptiActsPlainClamp", _plain_forward, _plain_backward, _watched_backward)
"""(x, low, high) -> the clamp, past dispatcher and transforms; None where somebody may look on."""
