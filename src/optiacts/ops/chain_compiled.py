"""Chains under ``torch.compile``: a forward that the compiler sees and fuses, and the opaque op as backward.

    optiacts::chain_factors(Tensor? weight, Tensor? bias, str curve, ScalarType dtype)
        -> (Tensor scale, Tensor shift, Tensor one)

The norm and the activation are traced as they are, so that they stay one kernel, which makes the side bits as bytes
besides; an op packs them. The backward takes y, the bits and rstd, which are all that the compiler may keep: it does
not look into an op, and so finds no use for the norm's input.

``chain_factors`` is the weight and the bias as they are now, and the guard, as ``norm_factors`` is for norms: see
ops/norm_compiled.py. Nothing is rescued: a norm with a bad channel is marked, and its graph is PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optiacts import curves
from optiacts._torch import known_to_compilers
from optiacts.chains import Chain, SavedChain
from optiacts.norms import arithmetic
from optiacts.ops import library
from optiacts.ops.chain import Normed, chain_backward
from optiacts.ops.dropout import dropout_pack
from optiacts.ops.norm_graphs import check
from optiacts.packing import packed_shape


def compiled_chain(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: Chain, normed: Normed) -> Tensor:
    """The activation of ``normed.z``, which is the norm ``kind`` of x."""
    result: Tensor = OptiActsCompiledChain.apply(x, weight, bias, normed.z, normed.rstd, kind)
    return result


# The op


def _factors(
    weight: Tensor | None, bias: Tensor | None, curve: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    kind = Chain("", curve, "rows", 0.0)
    like = weight if weight is not None else bias
    assert like is not None
    factors = kind.scale(weight, copy=True), kind.shift(bias, copy=True)
    poison = check(kind, weight, bias, *factors, dtype)
    scale, shift = (like.new_empty(0, dtype=torch.float32) if factor is None else factor for factor in factors)
    if poison is not None:
        scale, shift = (factor.masked_fill(poison, torch.nan) for factor in (scale, shift))
    return scale, shift, like.new_ones((), dtype=dtype)


def _fake_factors(
    weight: Tensor | None, bias: Tensor | None, curve: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    like = weight if weight is not None else bias
    assert like is not None
    scale, shift = (
        like.new_empty(0, dtype=torch.float32) if p is None else p.new_empty(p.numel(), dtype=arithmetic(p.dtype))
        for p in (weight, bias)
    )
    return scale, shift, like.new_empty((), dtype=dtype)


chain_factors = library.declare(
    "chain_factors(Tensor? weight, Tensor? bias, str curve, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _factors,
    fake=_fake_factors,
    sharding=lambda *arguments: (),
)


@known_to_compilers
def _has_bits(curve: str) -> bool:
    return bool(curves.get(curve).decoder.side_bits)


@known_to_compilers
def _threshold(curve: str, dtype: torch.dtype) -> float:
    return curves.get(curve).threshold(dtype)


def _right(rows: Tensor, threshold: float) -> Tensor:
    """Which elements (bool) are not left of the threshold, as bytes made of floats.

    To store a comparison itself takes Inductor ten times as long as the norm and the activation, on a CPU.
    """
    return torch.where(rows < threshold, 0.0, 1.0).to(torch.uint8).view(torch.bool)


# The Function


class OptiActsCompiledChain(torch.autograd.Function):
    """(x, weight, bias, z, rstd) -> act(z), with y, its bits, rstd, the weight and the bias as they are now saved."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        z: Tensor,
        rstd: Tensor | None,
        kind: Chain,
    ) -> Tensor:
        curve, last = curves.get(kind.curve), kind.last(z)
        y = curve.forward(z)
        scale = shift = None
        if weight is not None or bias is not None:
            factors = chain_factors(weight, bias, kind.curve, y.dtype)
            scale, shift = None if weight is None else factors[0], None if bias is None else factors[1]
            y = y * factors[2]
        rows = kind.rows(z, last)
        if _has_bits(kind.curve):
            bits = dropout_pack(_right(rows, _threshold(kind.curve, z.dtype)), [])
        else:
            bits = z.new_empty(packed_shape(rows.shape, 0), dtype=torch.uint8)
        rstd = kind.taken(kind.rows(x, last), last)[1] if rstd is None else rstd
        ctx.kind, ctx.last, ctx.dtype = kind, last, x.dtype
        ctx.weight = None if weight is None else (weight.shape, weight.dtype)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        ctx.save_for_backward(y, bits, rstd, scale, shift)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kind, last = ctx.kind, ctx.last
        y, bits, rstd, scale, shift = ctx.saved_tensors
        saved = SavedChain(
            *(kind.rows(y, last), bits, rstd, scale, shift, None, None, None),
            *(kind.curve, kind.statistics, kind.centered, last),
        )
        dx, by_scale, by_shift = chain_backward(kind.rows(grad, last), *saved, ctx.dtype)
        return (
            kind.restored(dx, y, last),
            None if ctx.weight is None else by_scale.view(ctx.weight[0]).to(ctx.weight[1]),
            None if ctx.bias is None else by_shift.view(ctx.bias[0]).to(ctx.bias[1]),
            *(None, None, None),
        )
