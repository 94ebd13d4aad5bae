"""Norms under ``torch.compile``: the same formula in operations that the compiler sees, or fused norms' two ops.

    optiacts::norm_factors(Tensor? weight, Tensor? bias, float offset, bool remainder, ScalarType dtype)
        -> (Tensor scale, Tensor shift, Tensor one)

The forward is the norm's own, traced, so that what stands before it (the residual addition) stays fused with it. Its
backward is written in terms of the output, which the compiler then keeps: the layer after it needs that as well.
Only remainder bits, of fused norms in 16 bits, take ops: a compiler keeps no rounding between two of its steps.

``norm_factors`` is the weight (with its offset) and the bias as they are now, and the guard. A compiled graph cannot
choose what it keeps. It is made for weights that were found to be good when it was traced; where one of them is not
any more, an error is raised (on a CPU at once), and what backward would be computed with is NaN. The output is
multiplied by ``one``, so that this happens in the forward: nothing else there needs it, and compilers would leave it
to the backward, with whatever the weights are then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optiacts.backends import eager_norm
from optiacts.norms import Norm, Saved, arithmetic
from optiacts.ops import library
from optiacts.ops.functions import unchanged
from optiacts.ops.norm import Forward, norm_backward, norm_remainder, norm_statistics
from optiacts.ops.norm_graphs import check


def compiled_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: Norm, forward: Forward) -> Tensor:
    """``forward(x)``, which is the norm ``kind`` of x, with its output and one rstd per row for backward."""
    # With dynamic=True numbers are inputs of the graph. Dynamo has to meet them out here, by an operation: one that
    # it first meets inside a Function it takes for that Function's, and fails where the next norm has the same.
    _ = kind.eps > kind.offset
    result: Tensor = OptiActsCompiledNorm.apply(x, weight, bias, kind, forward)
    return result


# The op


def _factors(
    weight: Tensor | None, bias: Tensor | None, offset: float, remainder: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    kind = Norm(False, 0.0, offset=offset, remainder=remainder)
    like = weight if weight is not None else bias
    assert like is not None
    # copies: results of an op share no storage with what it was given
    factors = kind.scale(weight, copy=True), kind.shift(bias, copy=True)
    scale, shift = _given_or_empty(like, *check(kind, weight, bias, *factors, dtype))
    return scale, shift, like.new_ones((), dtype=dtype)


def _fake_factors(
    weight: Tensor | None, bias: Tensor | None, offset: float, remainder: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    like = weight if weight is not None else bias
    assert like is not None
    scale, shift = _given_or_empty(
        like, *(None if p is None else p.new_empty(p.numel(), dtype=arithmetic(p.dtype)) for p in (weight, bias))
    )
    return scale, shift, like.new_empty((), dtype=dtype)


def _given_or_empty(like: Tensor, *factors: Tensor | None) -> list[Tensor]:
    return [like.new_empty(0, dtype=torch.float32) if factor is None else factor for factor in factors]


norm_factors = library.declare(
    "norm_factors(Tensor? weight, Tensor? bias, float offset, bool remainder, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    _factors,
    fake=_fake_factors,
    sharding=lambda *arguments: (),
)


# The Function


class OptiActsCompiledNorm(torch.autograd.Function):
    """(x, weight, bias) -> y, with y, rstd, the weight and the bias as they are now and remainder bits saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: Norm, forward: Forward
    ) -> Tensor:
        made = forward(x)
        y, *known = made if isinstance(made, tuple) else (made,)
        scale = shift = bits = None
        if weight is not None or bias is not None:
            factors = norm_factors(weight, bias, kind.offset, kind.remainder, y.dtype)
            scale, shift = None if weight is None else factors[0], None if bias is None else factors[1]
            y = y * factors[2]
        rows, out_rows = kind.rows(x), kind.rows(y)
        told = [] if not known else [each.reshape(*rows.shape[:-1], 1) for each in known]
        if not (kind.remainder and y.element_size() <= 2):
            rstd = told[1] if told else kind.statistics(rows)[1]
        elif told and told[1].dtype is arithmetic(x.dtype):
            rstd, bits = told[1], norm_remainder(rows, out_rows, scale, shift, *told)
        else:
            _, rstd, bits = norm_statistics(rows, out_rows, scale, shift, kind.eps, kind.centered, True)
        ctx.kind, ctx.dtype = kind, x.dtype
        ctx.weight = None if weight is None else (weight.shape, weight.dtype)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        ctx.save_for_backward(unchanged(y), rstd, scale, shift, bits)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        kind: Norm = ctx.kind
        y, rstd, scale, shift, bits = ctx.saved_tensors
        g = kind.rows(grad)
        saved = Saved(kind.rows(y), None, rstd, scale, shift, None, None, bits, kind.centered, True)
        if bits is None:
            x_hat = eager_norm.normalised(saved)
            dx, by_scale, by_shift = eager_norm.gradients(g.to(rstd.dtype), x_hat, rstd, scale, kind.centered)
        else:
            dx, by_scale, by_shift = norm_backward(g, *saved, ctx.dtype)
        return (
            kind.restored(dx.to(ctx.dtype), grad),
            None if ctx.weight is None else by_scale.view(ctx.weight[0]).to(ctx.weight[1]),
            None if ctx.bias is None else by_shift.view(ctx.bias[0]).to(ctx.bias[1]),
            None,
            None,
        )
