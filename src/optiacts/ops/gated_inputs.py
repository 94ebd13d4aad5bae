"""The gated product that keeps its inputs, gate and up, and evaluates the activation once more in backward.

For where nobody else keeps the product: gate and up are less than the product and a slot, and exact. Eager alone:
compilers find by themselves that the activation can be evaluated again. Where the activation is one operation of
PyTorch, so is its gradient, and a call of plain tensors can be replayed; of others autograd makes the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from optiacts import curves
from optiacts._torch import autocasts, run
from optiacts.ops.functions import differentiable
from optiacts.ops.plain import Plain, plain

_ATEN = torch.ops.aten
# the gradients of the operations that the curves' own forwards are, by the gradient of the output and the input
_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _ATEN.silu_backward.default,
    "gelu": _ATEN.gelu_backward.default,
    "gelu_tanh": functools.partial(_ATEN.gelu_backward.default, approximate="tanh"),
    "mish": _ATEN.mish_backward.default,
}


def gated_from_inputs(gate: Tensor, up: Tensor, name: str) -> Tensor:
    """act(gate) * up; saved for backward are gate and up."""
    found: Tensor | None = plain_gated_from_inputs(gate, up, name) if name in _GRADIENTS else None
    result: Tensor = run(OptiActsGatedFromInputs, gate, up, name) if found is None else found
    return result


def _plain_forward(gate: Tensor, up: Tensor, name: str) -> Plain:
    return curves.get(name).forward(gate) * up, (gate, up), name


def _plain_backward(
    name: str, needed: tuple[bool, ...], grad: Tensor, gate: Tensor, up: Tensor
) -> tuple[Tensor | None, ...]:
    by_up = grad * curves.get(name).forward(gate) if needed[1] else None
    return _GRADIENTS[name](grad * up, gate) if needed[0] else None, by_up, None


def _watched_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    return (None, None, None) if grad is None else _gradients(ctx, grad, ctx.info, None)


plain_gated_from_inputs = plain(
    "OptiActsPlainGatedFromInputs", _plain_forward, _plain_backward, _watched_backward, any_gradient=True
)
"""(gate, up, name) -> act(gate) * up, past dispatcher and transforms; None where somebody may look on."""


class OptiActsGatedFromInputs(torch.autograd.Function):
    """(gate, up) -> act(gate) * up, whose gradients are those of PyTorch's own expression, to the bit."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, name: str) -> Tensor:
        device = gate.device.type
        ctx.curve, ctx.autocast = name, torch.get_autocast_dtype(device) if autocasts(device) else None
        ctx.save_for_backward(gate, up)
        return curves.get(name).forward(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad, ctx.curve, ctx.autocast)


def _gradients(ctx: Any, grad: Tensor, name: str, autocast: torch.dtype | None) -> tuple[Tensor | None, ...]:
    gate, up = ctx.saved_tensors
    again = differentiable()
    gate = gate if again else gate.detach().requires_grad_()
    with torch.enable_grad(), _autocast(gate.device.type, autocast):
        s = curves.get(name).forward(gate)
    by_gate, by_up = None, (grad * s).to(up.dtype) if ctx.needs_input_grad[1] else None
    if ctx.needs_input_grad[0]:
        (by_gate,) = torch.autograd.grad(s, gate, (grad * up).to(s.dtype), create_graph=again)
    return by_gate, by_up, None


def _autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """As in the forward: in that dtype, or off."""
    return nullcontext() if device == "meta" else torch.autocast(device, dtype, dtype is not None)
