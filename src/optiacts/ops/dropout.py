"""Dropout: one bit per element tells what was dropped. Behind an activation or a gated product not even that.

    optiacts::dropout_pack(Tensor kept, int[] order) -> Tensor bits
    optiacts::dropout_scale(Tensor x, Tensor bits, float scale, int[] order) -> Tensor

The first packs the bits of what bools, or bytes of 0 and 1, do not keep. The second is x * scale, and x * 0 where the
bit is set: a dropout, and its gradient. ``order`` is as in ``optiacts.ops.activation``.

The draw is PyTorch's own, to the bit and to the state of its generator, and stands outside the ops: an op that draws
would draw anew where a compiler recomputes it, and two equal ones would be taken for one.

Behind an activation a dropped element is one infinitely far left: the result is 0 and the side bit is set. What is
0 without the bit is x = 0. Behind a gated product the slot is 0 and "holds up" where it was dropped, which it is
nowhere else. Both gradients follow from what is saved anyway, with the result divided by ``scale``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optiacts import backends, curves
from optiacts._torch import run, undisturbed
from optiacts.layouts import Order, memory_order, permute, restore
from optiacts.ops import activation, gated, library
from optiacts.ops.activation import activation_forward, times_derivative
from optiacts.ops.functions import Decoding, decoding, differentiable, unchanged
from optiacts.ops.gated import product, product_backward, save_product
from optiacts.ops.plain import Plain, plain
from optiacts.overwritten import remember, saved_tensors
from optiacts.packing import packed_shape
from optiacts.recording import Form


def dropout(input: Tensor, p: float, overwrites: bool = False) -> Tensor:
    """The dropout with one bit per element saved.

    ``overwrites``: into the storage of ``input``, and drawn as PyTorch draws then.
    """
    if overwrites and torch.compiler.is_compiling():
        return input.copy_(dropout(input, p))
    return run(OptiActsInplaceDropout if overwrites else OptiActsDropout, input, p)


def activation_dropout(input: Tensor, name: str, p: float, overwrites: bool = False) -> Tensor:
    """The dropout of an activation's output. ``overwrites``: drawn as PyTorch draws in place."""
    return run(OptiActsDroppedActivation, input, name, p, overwrites)


def gated_dropout(gate: Tensor, up: Tensor, name: str, p: float, overwrites: bool = False) -> Tensor:
    """The dropout of act(gate) * up. ``overwrites``: drawn as PyTorch draws in place."""
    return run(OptiActsDroppedGated, gate, up, name, p, overwrites)[0]


@functools.lru_cache(maxsize=64)  # p may be annealed
@undisturbed
def factor(p: float, dtype: torch.dtype) -> float:
    """By how much PyTorch's dropout on CPU multiplies what it keeps: 1 / (1 - p), rounded to the dtype."""
    return float(torch.ones((), dtype=dtype, device="cpu").div_(1 - p))


class _Draw(NamedTuple):
    """A dropout's result, the bools of what it kept, and by how much that was multiplied."""

    result: Tensor
    kept: Tensor
    scale: float


def _native(x: Tensor, overwrites: bool) -> bool:
    """Whether PyTorch's dropout of ``x`` is the op ``native_dropout``: on CUDA, and where a compiler has it so."""
    return torch.compiler.is_compiling() or (x.is_cuda and not overwrites)


def _draw_bools(x: Tensor, p: float) -> Tensor:
    """What PyTorch's dropout keeps where it is no ``native_dropout``. Bools draw the same numbers as its floats."""
    return torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p)


def _draw(x: Tensor, p: float, order: Order, overwrites: bool) -> tuple[_Draw, Tensor]:
    """The dropout of ``x``, and the bits of what it dropped."""
    if _native(x, overwrites):
        y, kept = torch.native_dropout(x, p, True)
        return _Draw(y, kept, 1 / (1 - p)), _packed(kept, order)
    scale = factor(p, x.dtype)
    kept = _draw_bools(x, p)
    bits = library.call(dropout_pack, kept, order)
    return _Draw(library.call(dropout_scale, x, bits, scale, order), kept, scale), bits


def _packed(kept: Tensor, order: Order) -> Tensor:
    """The bits of what was dropped."""
    if torch.compiler.is_compiling() and kept.device.type == "cpu":
        # code for CPUs stores bools one by one, ten times as slowly
        kept = torch.where(kept, 1.0, 0.0).to(torch.uint8)
    bits: Tensor = library.call(dropout_pack, kept, order)
    return bits


# The ops


def _pack(kept: Tensor, order: Order, select: Any = backends.select_for_dropout) -> Tensor:
    kept = kept.view(torch.bool)
    return select(kept).pack_dropped(permute(kept, order))


def _fake_pack(kept: Tensor, order: Order) -> Tensor:
    return kept.new_empty(packed_shape(permute(kept, order).shape), dtype=torch.uint8)


def _check_bools(kept: Tensor, order: Order) -> None:
    if kept.dtype not in (torch.bool, torch.uint8):
        raise ValueError(f"kept must be bool, or uint8 of 0 and 1; got {kept.dtype}")


def _scale(x: Tensor, bits: Tensor, scale: float, order: Order, select: Any = backends.select_for_dropout) -> Tensor:
    return restore(select(x).scale_kept(permute(x, order), bits, scale).contiguous(), order)


def _fake_scale(x: Tensor, bits: Tensor, scale: float, order: Order) -> Tensor:
    return restore(x.new_empty(permute(x, order).shape), order)


def _check_bits(x: Tensor, bits: Tensor, scale: float, order: Order) -> None:
    """A backend reads ``bits`` by address: nothing but the right shape may reach it."""
    wanted = packed_shape(permute(x, order).shape)
    if bits.dtype != torch.uint8 or bits.shape != wanted or bits.device != x.device:
        raise ValueError(
            f"bits must be uint8 of shape {wanted} on {x.device} for x of shape {tuple(x.shape)}; "
            f"got {bits.dtype} of shape {tuple(bits.shape)} on {bits.device}"
        )


def _vmap_scale(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, bits: Tensor, scale: float, order: Order
) -> Any:
    scalars = x.ndim == (0 if in_dims[0] is None else 1)
    batched = library.batched((x, bits), in_dims[:2], info.batch_size)
    result = dropout_scale(*batched, scale, library.batched_order(order))
    return result.squeeze(-1) if scalars else result, 0


dropout_pack = library.declare(
    "dropout_pack(Tensor kept, int[] order) -> Tensor",
    _pack,
    check=_check_bools,
    fake=_fake_pack,
    sharding=lambda kept, order: (((place,), (d,)) for d, place in library.places(kept, order)),
    traced=functools.partial(_pack, select=backends.traced_dropout),
)
dropout_scale = library.declare(
    "dropout_scale(Tensor x, Tensor bits, float scale, int[] order) -> Tensor",
    _scale,
    check=_check_bits,
    fake=_fake_scale,
    vmap=_vmap_scale,
    sharding=lambda x, bits, scale, order: (((d,), (d, place)) for d, place in library.places(x, order)),
    traced=functools.partial(_scale, select=backends.traced_dropout),
)


# The Functions


class OptiActsDropout(torch.autograd.Function):
    """x -> y, saving the bits of what was dropped."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        ctx.order = tuple(memory_order(input))
        drawn, bits = _draw(input, p, ctx.order, overwrites=False)
        ctx.scale = drawn.scale
        ctx.save_for_backward(bits)
        return drawn.result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return _scaled(grad, bits, ctx.scale, ctx.order), None


@dataclass(frozen=True)
class _Drawn(Form):
    """By how much a dropout multiplied what it kept, and the memory order of its bits."""

    scale: float
    order: tuple[int, ...]


_drawn = functools.lru_cache(maxsize=1 << 12)(_Drawn)


def _plain_forward(input: Tensor, p: float) -> Plain:
    order = tuple(memory_order(input))
    drawn, bits = _draw(input, p, order, False)
    return drawn.result, (bits,), _drawn(drawn.scale, order)


def _plain_backward(drawn: _Drawn, needed: Any, grad: Tensor, bits: Tensor) -> tuple[Tensor, None]:
    return library.directly(dropout_scale, grad, bits, drawn.scale, drawn.order), None


def _watched_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
    if grad is None:
        return None, None
    (bits,) = ctx.saved_tensors
    return _scaled(grad, bits, ctx.info.scale, ctx.info.order), None


plain_dropout = plain("OptiActsPlainDropout", _plain_forward, _plain_backward, _watched_backward)
"""(input, p) -> the dropout, past dispatcher and transforms; None where somebody may look on."""


class OptiActsInplaceDropout(torch.autograd.Function):
    """The same in the storage of x."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        ctx.order, ctx.scale = tuple(memory_order(input)), factor(p, input.dtype)
        kept = _draw_bools(input, p)
        ctx.save_for_backward(library.call(dropout_pack, kept, ctx.order))
        ctx.mark_dirty(input)
        return input.mul_(kept.to(input.dtype).mul_(ctx.scale))

    backward = OptiActsDropout.backward


def _scaled(grad: Tensor, bits: Tensor, scale: float, order: Order) -> Tensor:
    """The gradient of a dropout; through a Function only where someone may differentiate it again."""
    if differentiable():
        return OptiActsDropoutGradient.apply(grad, bits, scale, order)
    return library.call(dropout_scale, grad, bits, scale, order)


class OptiActsDropoutGradient(torch.autograd.Function):
    """grad -> grad of the input: linear, and so its own derivative."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, bits: Tensor, scale: float, order: Order) -> Tensor:
        ctx.scale, ctx.order = scale, order
        ctx.save_for_backward(bits)
        return dropout_scale(grad, bits, scale, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return _scaled(grad, bits, ctx.scale, ctx.order), None, None, None


@dataclass(frozen=True)
class _Dropped(Form):
    """The curve in front of a dropout, and the dropout's probability."""

    name: str
    p: float


_dropped = functools.lru_cache(maxsize=1 << 12)(_Dropped)


def _plain_dropped_forward(input: Tensor, of: _Dropped) -> Plain:
    order = tuple(memory_order(input))
    output, bits = activation.forward(input, of.name, order)
    drawn, dropped = _draw(output, of.p, order, False)
    if curves.get(of.name).decoder.side_bits:
        bits = bits | dropped
    return drawn.result, (drawn.result, bits), decoding(of.name, order, drawn.scale)


_plain_dropped = plain(
    "OptiActsPlainDroppedActivation", _plain_dropped_forward, activation.plain_backward, activation.watched_backward
)


def plain_activation_dropout(input: Tensor, name: str, p: float) -> Tensor | None:
    """The dropout of an activation, past dispatcher and transforms; None where somebody may look on."""
    output: Tensor | None = _plain_dropped(input, _dropped(name, p))
    return output


class OptiActsDroppedActivation(torch.autograd.Function):
    """x -> dropout(f(x)), saving it and one bit per element, or none where the curve needs no side bit."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, name: str, p: float, overwrites: bool) -> Tensor:
        order = tuple(memory_order(input))
        output, bits = library.call(activation_forward, input, name, order)
        drawn, dropped = _draw(output, p, order, overwrites)
        if curves.get(name).decoder.side_bits:
            bits = bits | dropped
        ctx.by = Decoding(name, order, drawn.scale)
        remember(ctx, drawn.result)
        ctx.save_for_backward(unchanged(drawn.result), bits)
        return drawn.result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, bits = saved_tensors(ctx)
        return times_derivative(grad, y, bits, ctx.by), None, None, None


def _plain_gated_forward(gate: Tensor, up: Tensor, of: _Dropped) -> Plain:
    order = tuple(memory_order(gate))
    h, slot, bits = gated.forward(gate, up, of.name, order)
    drawn, slot, bits = _dropped_product(h, slot, bits, order, of.p, False)
    edges = gated.edges_of(gate)
    return (drawn.result, edges), (drawn.result, slot, bits, edges), decoding(of.name, order, drawn.scale)


def _dropped_product(
    h: Tensor, slot: Tensor, bits: Tensor, order: Order, p: float, overwrites: bool
) -> tuple[_Draw, Tensor, Tensor]:
    """The dropout of a product, and its slot and bits as they tell of it."""
    drawn, dropped = _draw(h, p, tuple(memory_order(h)), overwrites)
    if tuple(memory_order(h)) != order:
        dropped = _packed(drawn.kept, order)
    slot = torch.where(permute(drawn.kept, order), slot, 0.0)
    bits[..., -dropped.shape[-1] :].bitwise_or_(dropped)  # the plane of "holds up" is the last one
    return drawn, slot, bits


_plain_dropped_gated = plain(
    "OptiActsPlainDroppedGated", _plain_gated_forward, gated.plain_backward, gated.watched_backward
)


def plain_gated_dropout(gate: Tensor, up: Tensor, name: str, p: float) -> Tensor | None:
    """The dropout of a product likewise."""
    made: tuple[Tensor, Tensor] | None = _plain_dropped_gated(gate, up, _dropped(name, p))
    return None if made is None else made[0]


class OptiActsDroppedGated(torch.autograd.Function):
    """(gate, up) -> (dropout(act(gate) * up), slot, bits, gate_edge, up_edge), saving all of it."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, name: str, p: float, overwrites: bool) -> tuple[Tensor, ...]:
        order = tuple(memory_order(gate))
        h, slot, bits, *edges = product(gate, up, name)
        drawn, slot, bits = _dropped_product(h, slot, bits, order, p, overwrites)
        output = drawn.result, slot, bits, *edges
        save_product(ctx, gate, name, output, drawn.scale)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *to_edges: Tensor | None) -> tuple[Tensor | None, ...]:
        return *product_backward(ctx, grad, *to_edges[-2:]), None, None, None
