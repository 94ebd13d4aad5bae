"""Chains under ``torch.compile``: a forward that the compiler sees and fuses, and opaque ops for bits and backward.

    optiacts::chain_factors(Tensor? weight, Tensor? bias, str curve, ScalarType dtype)
        -> (Tensor scale, Tensor shift, Tensor ones)
    optiacts::chain_pack(Tensor right, str curve, int dims) -> Tensor bits
    optiacts::chain_gradients(Tensor grad, Tensor y, Tensor bits, Tensor rstd, Tensor? scale, Tensor? shift,
        str curve, str statistics, bool centered, int dims, ScalarType dtype)
        -> (Tensor grad_x, Tensor grad_scale, Tensor grad_shift)

The norm and the activation are traced as they are, so that they stay one kernel. The backward takes y, the bits and
rstd, which are all that the compiler may keep: it does not look into an op, and so finds no use for the norm's input.

``chain_factors`` is the weight and the bias as they are now, and the guard, as ``norm_factors`` is for norms: see
ops/norm_compiled.py. Nothing is rescued: a norm with a bad channel is marked, and its graph is PyTorch's. There is a
one for each channel: Inductor fuses what goes over the channels as z does, and else writes z to memory.

The kernel that makes y makes the bits as bytes besides, which are a quarter of z. An op packs them.

On a CPU ``chain_pack`` packs them in the order of their memory, and tells that order in one more byte. For Inductor
gives convolutions and what stands around them another order than they were traced with, and an op that insists on
that one is surrounded by copies, which take longer than the op. ``chain_gradients`` reads the byte. A host does not
wait for a GPU to read it: there the order is that of the trace.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from optiacts import backends, curves
from optiacts._torch import known_to_compilers
from optiacts.chains import Chain
from optiacts.norms import arithmetic
from optiacts.ops import library
from optiacts.ops.chain import Normed, gradients_from
from optiacts.ops.dropout import dropout_pack
from optiacts.ops.functions import unchanged
from optiacts.ops.norm_graphs import check
from optiacts.packing import packed_shape
from optiacts.replay import replayed


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
    found = check(kind, weight, bias, *factors, dtype)
    scale, shift = (like.new_empty(0, dtype=torch.float32) if factor is None else factor for factor in found)
    return scale, shift, like.new_ones(like.numel(), dtype=dtype)


def _fake_factors(
    weight: Tensor | None, bias: Tensor | None, curve: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    like = weight if weight is not None else bias
    assert like is not None
    scale, shift = (
        like.new_empty(0, dtype=torch.float32) if p is None else p.new_empty(p.numel(), dtype=arithmetic(p.dtype))
        for p in (weight, bias)
    )
    return scale, shift, like.new_empty(like.numel(), dtype=dtype)


chain_factors = library.declare(
    "chain_factors(Tensor? weight, Tensor? bias, str curve, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _factors,
    fake=_fake_factors,
    sharding=lambda *arguments: (),
)


def _layouts(shape: torch.Size, kind: Chain) -> dict[bool, tuple[int, int, int]]:
    """The shape of the rows of a tensor in each order that it may be packed in: whether channels are last."""
    if kind.dims:
        channels = math.prod(shape[len(shape) - kind.dims :])
        return {True: (math.prod(shape[: len(shape) - kind.dims]), 1, channels)}
    samples, channels, positions = shape[0], shape[1], math.prod(shape[2:])
    channels_last = {True: (samples, positions, channels)}
    return channels_last if positions == 1 else {False: (samples, channels, positions)} | channels_last


def _bytes(shape: torch.Size, curve: str, dims: int) -> int:
    """As many as the side bits take in any order, and one that tells it."""
    planes, layouts = curves.get(curve).decoder.side_bits, _layouts(shape, _chain_of(curve, dims))
    return max(math.prod(packed_shape(rows, planes)) for rows in layouts.values()) + 1


def _fake_pack(right: Tensor, curve: str, dims: int) -> Tensor:
    return right.new_empty(_bytes(right.shape, curve, dims), dtype=torch.uint8)


def _pack(right: Tensor, curve: str, dims: int) -> Tensor:
    kind = _chain_of(curve, dims)
    last = kind.last(right) or False not in _layouts(right.shape, kind)
    packed = right.new_empty(0, dtype=torch.uint8)
    if curves.get(curve).decoder.side_bits:
        kept = kind.rows(right, last).view(torch.bool)
        packed = backends.select_for_dropout(kept).pack_dropped(kept).flatten()
    missing = _bytes(right.shape, curve, dims) - packed.numel()
    return torch.cat([packed, packed.new_full((missing,), int(last))])


def _check_pack(right: Tensor, curve: str, dims: int) -> None:
    if right.ndim < max(2, dims):
        raise ValueError(f"right must have its channels and what they are of; got {[*right.shape]}")
    if right.dtype != torch.uint8 and curves.get(curve).decoder.side_bits:
        raise ValueError(f"right must be uint8; got {right.dtype}")


def _chain_of(curve: str, dims: int, statistics: str = "rows", centered: bool = True) -> Chain:
    return Chain("", curve, statistics, 0.0, dims, centered=centered)


def _gradients(grad: Tensor, y: Tensor, bits: Tensor, *more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The byte is a value, on which no replay may rest: what is done by it is replayed apart."""
    made: tuple[Tensor, Tensor, Tensor] = _gradients_in(bool(bits[-1]), grad, y, bits, *more)
    return made


@replayed
def _gradients_in(
    last: bool,
    grad: Tensor,
    y: Tensor,
    bits: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    curve: str,
    statistics: str,
    centered: bool,
    dims: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    kind = _chain_of(curve, dims, statistics, centered)
    shape = packed_shape(_layouts(y.shape, kind)[last], curves.get(curve).decoder.side_bits)
    packed = bits[: math.prod(shape)].view(shape)
    rstd = _of_rows(rstd, y, kind)
    dx, by_scale, by_shift = gradients_from(kind, last, dtype, grad, y, packed, rstd, scale, shift)
    if dx.stride() != y.stride():  # the order that was told to the compiler
        dx = torch.empty_like(y, dtype=dtype).copy_(dx)
    return dx, by_scale, by_shift


def _fake_gradients(grad: Tensor, y: Tensor, bits: Tensor, rstd: Tensor, *more: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, dims, dtype = more
    by_channel = rstd.new_empty(math.prod(y.shape[y.ndim - dims :]) if dims else y.shape[1])
    return torch.empty_like(y, dtype=dtype), by_channel, torch.empty_like(by_channel)


def _check_gradients(grad: Tensor, y: Tensor, bits: Tensor, *more: Any) -> None:
    """``chain_backward`` checks the rest."""
    *_, curve, _, _, dims, _ = more
    if y.ndim < max(2, dims) or grad.shape != y.shape:
        raise ValueError(f"grad and y must have one shape; got {[*grad.shape]} and {[*y.shape]}")
    wanted = _bytes(y.shape, curve, dims)
    if bits.dtype != torch.uint8 or bits.shape != (wanted,):
        raise ValueError(f"bits must be uint8 of shape {[wanted]}; got {bits.dtype} of shape {[*bits.shape]}")


chain_pack = library.declare(
    "chain_pack(Tensor right, str curve, int dims) -> Tensor",
    _pack,
    check=_check_pack,
    fake=_fake_pack,
    sharding=lambda *arguments: (),
    any_layout=True,
)
chain_gradients = library.declare(
    "chain_gradients(Tensor grad, Tensor y, Tensor bits, Tensor rstd, Tensor? scale, Tensor? shift, str curve, "
    "str statistics, bool centered, int dims, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _gradients,
    check=_check_gradients,
    fake=_fake_gradients,
    sharding=lambda *arguments: (),
    any_layout=True,
)


def _rstd(x: Tensor, kind: Chain) -> Tensor:
    """In the very operations into which compilers take the norms apart: they find the two to be one.

    And in their shape, which the op changes: Inductor writes to memory what it saves as it is. Where it saves another
    shape of that, it computes the root anew for each element of z.
    """
    x = x.to(arithmetic(x.dtype))
    if kind.dims:
        over: Any = tuple(range(x.ndim - kind.dims, x.ndim))
    elif kind.statistics == "batch":
        over = (0, *range(2, x.ndim))
    else:
        x, over = x.reshape(x.shape[0], kind.groups, x.shape[1] // kind.groups, -1), (2, 3)
    if kind.centered:
        variance = torch.var_mean(x, over, correction=0, keepdim=True)[0]
    else:
        variance = x.square().mean(over, keepdim=True)
    return (variance + kind.eps).rsqrt()


def _of_rows(rstd: Tensor, y: Tensor, kind: Chain) -> Tensor:
    """``rstd`` in the shape that gradients take."""
    if kind.statistics != "rows":
        return rstd.reshape(-1)
    samples = math.prod(y.shape[: y.ndim - kind.dims]) if kind.dims else y.shape[0]
    return rstd.reshape(samples, -1)


@known_to_compilers
def _has_bits(curve: str) -> bool:
    return bool(curves.get(curve).decoder.side_bits)


@known_to_compilers
def _threshold(curve: str, dtype: torch.dtype) -> float:
    return curves.get(curve).threshold(dtype)


def _along_channels(each: Tensor, z: Tensor, kind: Chain) -> Tensor:
    """A number for each channel of z, in a shape that is broadcast to that of z."""
    return each.view(z.shape[z.ndim - kind.dims :] if kind.dims else (-1, *(1,) * (z.ndim - 2)))


def _bits(z: Tensor, y: Tensor, ones: Tensor | None, last: bool, kind: Chain) -> Tensor:
    """The packed side bits, from bytes that the compiler writes beside the activation."""
    has_bits = _has_bits(kind.curve)
    if _told(z):  # not bools: code for CPUs stores these one by one, which takes ten times as long
        one: Any = 1.0 if ones is None else ones
        right = torch.where(z < _threshold(kind.curve, z.dtype), 0.0, one).to(torch.uint8) if has_bits else y
        return chain_pack(right, kind.curve, kind.dims)
    rows = kind.rows(z, last)
    if not has_bits:
        return rows.new_empty(packed_shape(rows.shape, 0), dtype=torch.uint8)
    return dropout_pack(~(rows < _threshold(kind.curve, z.dtype)), [])


def _activated(z: Tensor, curve: str) -> Tensor:
    """PyTorch's own activation, which a compiler takes apart below Dynamo: that follows no closure of a constant."""
    return curves.get(curve).forward(z)


@known_to_compilers
def _allowed() -> bool:
    """Has Dynamo put calls of ``_activated`` into its graph as they are."""
    torch.compiler.allow_in_graph(_activated)
    return True


def _told(tensor: Tensor) -> bool:
    """Whether a byte behind the bits tells their order."""
    return tensor.device.type == "cpu"


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
        last, _ = kind.last(z), _allowed()
        y = _activated(z, kind.curve)
        scale = shift = ones = None
        if weight is not None or bias is not None:
            factors = chain_factors(weight, bias, kind.curve, y.dtype)
            scale, shift = None if weight is None else factors[0], None if bias is None else factors[1]
            ones = _along_channels(factors[2], z, kind)
            y = y * ones
        bits = _bits(z, y, ones, last, kind)
        rstd = _rstd(x, kind) if rstd is None else rstd
        ctx.kind, ctx.last, ctx.dtype = kind, last, x.dtype
        ctx.weight = None if weight is None else (weight.shape, weight.dtype)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        ctx.save_for_backward(unchanged(y), bits, rstd, scale, shift)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kind, last = ctx.kind, ctx.last
        y, bits, rstd, scale, shift = ctx.saved_tensors
        if _told(y):
            what = kind.curve, kind.statistics, kind.centered, kind.dims
            dx, *sums = chain_gradients(grad, y, bits, rstd, scale, shift, *what, ctx.dtype)
        else:
            dx, *sums = gradients_from(kind, last, ctx.dtype, grad, y, bits, _of_rows(rstd, y, kind), scale, shift)
        by_scale, by_shift = sums
        return (
            dx,
            None if ctx.weight is None else by_scale.view(ctx.weight[0]).to(ctx.weight[1]),
            None if ctx.bias is None else by_shift.view(ctx.bias[0]).to(ctx.bias[1]),
            *(None, None, None),
        )
