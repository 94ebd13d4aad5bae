"""The gated product that keeps its inputs, gate and up, and evaluates the activation once more in backward.

For where nobody else keeps the product: gate and up are less than the product and a slot, and exact. Eager alone:
compilers find by themselves that the activation can be evaluated again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from optiacts import curves
from optiacts._torch import autocasts, run
from optiacts.ops.functions import differentiable


def gated_from_inputs(gate: Tensor, up: Tensor, name: str) -> Tensor:
    """act(gate) * up; saved for backward are gate and up."""
    result: Tensor = run(OptiActsGatedFromInputs, gate, up, name)
    return result


class OptiActsGatedFromInputs(torch.autograd.Function):
    """(gate, up) -> act(gate) * up, whose gradients are those of PyTorch's own expression, to the bit."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, name: str) -> Tensor:
        device = gate.device.type
        ctx.curve, ctx.autocast = name, torch.get_autocast_dtype(device) if autocasts(device) else None
        ctx.save_for_backward(gate, up)
        return curves.get(name).forward(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gate, up = ctx.saved_tensors
        again = differentiable()
        gate = gate if again else gate.detach().requires_grad_()
        with torch.enable_grad(), _autocast(gate.device.type, ctx.autocast):
            s = curves.get(ctx.curve).forward(gate)
        by_gate, by_up = None, (grad * s).to(up.dtype) if ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[0]:
            (by_gate,) = torch.autograd.grad(s, gate, (grad * up).to(s.dtype), create_graph=again)
        return by_gate, by_up, None


def _autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """As in the forward: in that dtype, or off."""
    return nullcontext() if device == "meta" else torch.autocast(device, dtype, dtype is not None)
