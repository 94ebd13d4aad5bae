"""PReLU from its output: max(x, 0) + weight min(x, 0), with a learnt weight for each channel, or one.

The slope is told by the sign of y. The input left of 0, which the gradient of the weight needs, is y / weight: one
division for each channel, after the sum. Both ask for a weight that is neither negative nor tiny. On a CPU every
forward looks at it; elsewhere it is remembered and watched as the weights of norms are: see ops/norm_channels.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optiacts._torch import is_fake, run
from optiacts.ops import norm_channels
from optiacts.ops.functions import differentiable
from optiacts.overwritten import remember, saved_tensors

LEAST, MOST = 1e-3, 1e3  # an output that underflows or overflows on its way through 16 bits has lost its input


@dataclass(frozen=True)
class _Slopes:
    """What ops/norm_channels.py asks of a kind of norm, for the weights of PReLU: a bad one cannot be rescued."""

    def scale(self, weight: Tensor | None) -> Tensor | None:
        return weight

    def shift(self, bias: Tensor | None) -> Tensor | None:
        return bias

    def bad(self, scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        assert scale is not None
        return ~((scale >= LEAST) & (scale <= MOST))

    def most_rescued(self, channels: int) -> int:
        return 0


_SLOPES: Any = _Slopes()


def tells(input: Tensor, weight: Tensor) -> norm_channels.Channels | None:
    """What there is to know if the output will tell the gradients; None if it will not."""
    if is_fake(weight) or weight.is_meta or not norm_channels.waits(weight.device):
        fine = is_fake(weight) or weight.is_meta or not _SLOPES.bad(weight.detach(), None, input.dtype).any()
        return norm_channels.Channels(True) if fine else None
    found = norm_channels.look(_SLOPES, weight, None, weight, None, input.dtype)
    return found if found.keep_output and found.rescued is None else None


def prelu(input: Tensor, weight: Tensor, known: norm_channels.Known | None) -> Tensor:
    """PReLU with its output saved for backward."""
    result: Tensor = run(OptiActsPReLU, input, weight, known)
    return result


class OptiActsPReLU(torch.autograd.Function):
    """(x, weight) -> y. The weight as it was is saved too: it may be changed unseen, and is small."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, known: norm_channels.Known | None) -> Tensor:
        y = torch.nn.functional.prelu(input, weight)
        ctx.known, ctx.dtype = known, input.dtype  # autocast computes in another one
        remember(ctx, y)
        ctx.save_for_backward(y, weight, weight.detach().clone())
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        y, weight, then = saved_tensors(ctx)
        slopes = _by_channel(weight if differentiable() else then, y).to(y.dtype)
        dropped: tuple[int, ...] = tuple(d for d in range(y.ndim) if slopes.ndim == 0 or slopes.shape[d] == 1)
        if differentiable():
            below = y <= 0
            by_input = grad * torch.where(below, slopes, 1.0)
            inputs = torch.where(below, grad * y, 0.0) / slopes
            return by_input.to(ctx.dtype), inputs.sum(dropped).reshape(weight.shape).to(weight.dtype), None
        if not ctx.needs_input_grad[1]:
            return (grad * torch.where(y <= 0, slopes, 1.0)).to(ctx.dtype), None, None
        by_input, products = torch.ops.aten._prelu_kernel_backward(grad, y, slopes)
        wide = torch.promote_types(y.dtype, torch.float32)
        slope: Any = then
        if ctx.known is not None:
            slope, _ = norm_channels.guard(ctx.known, then, None, None, None)
        by_weight = products.sum(dropped, dtype=wide).reshape(then.shape) / slope.to(y.dtype).to(wide)
        return by_input.to(ctx.dtype), by_weight.to(then.dtype), None


def _by_channel(weight: Tensor, y: Tensor) -> Tensor:
    """The weight, shaped to be multiplied with ``y``, whose channels are its second dimension."""
    if y.ndim == 0:
        return weight.reshape(())
    return weight.reshape([-1 if d == min(1, y.ndim - 1) else 1 for d in range(y.ndim)])
