"""``torch.nn.functional.glu``, a * sigmoid(b) of the halves of one tensor, which keeps its output h and b.

    optiacts::glu_backward(Tensor grad, Tensor h, Tensor b, int dim) -> Tensor

The gradients need neither a nor a division:

    of a: grad * sigmoid(b)        of b: grad * a * sigmoid(b) * (1 - sigmoid(b)) = grad * h * sigmoid(-b)

b is an output of the Function, too, so that a second derivative finds its way to the input through h and b.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from optiacts._torch import run
from optiacts.ops import library
from optiacts.ops.functions import differentiable, unchanged
from optiacts.overwritten import remember, saved_tensors


def glu(x: Tensor, dim: int) -> Tensor:
    """``torch.nn.functional.glu(x, dim)``, with a ``dim`` from 0 on."""
    return run(OptiActsGLU, x, dim)[0]


def _backward(grad: Tensor, h: Tensor, b: Tensor, dim: int) -> Tensor:
    """Both gradients as the halves of one tensor, computed in float32 (float64) and rounded once."""
    shape = list(h.shape)
    shape[dim] *= 2
    both = h.new_empty(shape)
    by_a, by_b = both.chunk(2, dim)
    gate = b.to(torch.promote_types(b.dtype, torch.float32))
    torch.mul(grad, torch.sigmoid(gate), out=by_a)
    by_b.copy_(torch.sigmoid(gate.neg_() if gate.dtype is not b.dtype else -gate).mul_(h).mul_(grad))
    return both


def _fake_backward(grad: Tensor, h: Tensor, b: Tensor, dim: int) -> Tensor:
    shape = list(h.shape)
    shape[dim] *= 2
    return h.new_empty(shape)


def _check(grad: Tensor, h: Tensor, b: Tensor, dim: int) -> None:
    for name, tensor in (("grad", grad), ("b", b)):
        if (tensor.shape, tensor.dtype, tensor.device) != (h.shape, h.dtype, h.device):
            raise ValueError(
                f"{name} must have shape, dtype and device of h, {tuple(h.shape)}, {h.dtype} on {h.device}; "
                f"got {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
            )
    if not 0 <= dim < h.ndim:
        raise ValueError(f"dim must be from 0 to {h.ndim - 1}; got {dim}")


glu_backward = library.declare(
    "glu_backward(Tensor grad, Tensor h, Tensor b, int dim) -> Tensor",
    _backward,
    check=_check,
    fake=_fake_backward,
    sharding=lambda grad, h, b, dim: (((d,), (d, d, d)) for d in range(h.ndim) if d != dim),
    traced=_backward,
)


class OptiActsGLU(torch.autograd.Function):
    """x -> (h, b)."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return functional.glu(x, dim), x.chunk(2, dim)[1].clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.dim = inputs[1]
        ctx.set_materialize_grads(False)
        remember(ctx, output[0])
        ctx.save_for_backward(unchanged(output[0]), output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, by_b: Tensor | None) -> tuple[Tensor | None, None]:
        h, b = saved_tensors(ctx)
        both = None
        if grad is not None and differentiable():
            both = torch.cat([grad * torch.sigmoid(b), grad * h * torch.sigmoid(-b)], dim=ctx.dim)
        elif grad is not None:
            both = library.call(glu_backward, grad, h, b, ctx.dim)
        if by_b is None:
            return both, None
        second = torch.cat([torch.zeros_like(by_b), by_b], dim=ctx.dim)
        return (second if both is None else both + second), None
