"""The gated product: (gate, up) -> (h, slot, bits), and from the last three and h's gradient those of gate and up.

    optiacts::gated_forward(Tensor gate, Tensor up, str curve, int[] order=[]) -> (Tensor h, Tensor slot, Tensor bits)
    optiacts::gated_backward(Tensor grad, Tensor h, Tensor slot, Tensor bits, str curve, int[] order=[],
        float? scale=None) -> (Tensor grad_gate, Tensor grad_up)
    optiacts::gated_backward_fused(Tensor grad, Tensor h, Tensor slot, Tensor bits, str curve, int[] order=[],
        float? scale=None) -> Tensor

The last one returns the two gradients as the halves of one tensor's last dimension. ``order`` is the memory order of
gate's dimensions, as for an activation. h and the gradients have the layout that PyTorch gives to ``act(gate) * up``;
slot and bits are contiguous with their dimensions in that order. Bits are two planes (see ``optiacts.packing``), the
side bits of gate (none for ReLU) and the "slot holds up" bits. docs/gated.md says what the slot holds.
``scale`` is that of a dropout behind the product, whose result stands in the place of h: see ops/dropout.py.

Saved besides h, slot and bits are *edges*: zeros of one element, expanded to the shape of the inputs. They are
outputs of the Function, and so the way on which a second derivative reaches gate and up, which are not saved
themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optiacts import backends, curves, decoders
from optiacts._torch import computed_once, forward_mode, run
from optiacts.layouts import Order, memory_order, permute, restore
from optiacts.ops import library, sharding
from optiacts.ops.functions import Decoding, decoding, differentiable, unchanged
from optiacts.ops.plain import Plain, plain
from optiacts.overwritten import remember, saved_tensors
from optiacts.packing import packed_shape, unpack_planes


def gated(gate: Tensor, up: Tensor, name: str) -> Tensor:
    """act(gate) * up, of two tensors of one shape and dtype."""
    function = OptiActsDualGated if forward_mode() else OptiActsGated
    return run(function, gate, up, name)[0]


def gated_fused(gate_up: Tensor, name: str) -> Tensor:
    """The same, of the halves of the last dimension of one tensor, which gets its gradient in one piece."""
    function = OptiActsDualGatedFused if forward_mode() else OptiActsGatedFused
    return run(function, gate_up, name)[0]


# The ops


def forward(
    gate: Tensor, up: Tensor, name: str, order: Order = (), select: Any = backends.select_gated
) -> tuple[Tensor, Tensor, Tensor]:
    curve = curves.get(name)
    return select(gate, curve).gated_forward(gate, up, curve, order)


def _backward(
    grad: Tensor,
    h: Tensor,
    slot: Tensor,
    bits: Tensor,
    name: str,
    order: Order = (),
    scale: float | None = None,
    select: Any = backends.select_gated,
) -> tuple[Tensor, Tensor]:
    grads = _fake_backward(grad, h, slot, bits, name, order)
    _write_gradients(grad, h, slot, bits, name, order, grads, scale, select)
    return grads


def _backward_fused(
    grad: Tensor,
    h: Tensor,
    slot: Tensor,
    bits: Tensor,
    name: str,
    order: Order = (),
    scale: float | None = None,
    select: Any = backends.select_gated,
) -> Tensor:
    both = _fake_backward_fused(grad, h, slot, bits, name, order)
    _write_gradients(grad, h, slot, bits, name, order, _halves(both), scale, select)
    return both


def _write_gradients(
    grad: Tensor,
    h: Tensor,
    slot: Tensor,
    bits: Tensor,
    name: str,
    order: Order,
    into: tuple[Tensor, Tensor],
    scale: float | None,
    select: Any,
) -> None:
    curve, (by_gate, by_up) = curves.get(name), into
    if order:
        grad, h, by_gate, by_up = (permute(t, order) for t in (grad, h, by_gate, by_up))
    kernels = select(h, curve, scale is not None)
    kernels.gated_backward(grad, h, slot, bits, curve, by_gate, by_up, scale)


def _fake_forward(gate: Tensor, up: Tensor, name: str, order: Order = ()) -> tuple[Tensor, Tensor, Tensor]:
    slot = gate.new_empty(permute(gate, order).shape)
    return _empty(gate, gate.shape, order), slot, gate.new_empty(_bits_shape(slot, name), dtype=torch.uint8)


def _fake_backward(
    grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, name: str, order: Order = (), *scale: float | None
) -> tuple[Tensor, Tensor]:
    return _empty(h, h.shape, order), _empty(h, h.shape, order)


def _fake_backward_fused(
    grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, name: str, order: Order = (), *scale: float | None
) -> Tensor:
    return _empty(h, (*h.shape[:-1], 2 * h.shape[-1]), order)


def _empty(like: Tensor, shape: Sequence[int], order: Order) -> Tensor:
    """A new tensor of ``shape`` that is contiguous with its dimensions in ``order``."""
    return restore(like.new_empty([shape[d] for d in order]), order) if order else like.new_empty(shape)


def _bits_shape(slot: Tensor, name: str) -> tuple[int, ...]:
    return packed_shape(slot.shape, curves.get(name).decoder.side_bits + 1)


def _check_inputs(gate: Tensor, up: Tensor, name: str, order: Order = ()) -> None:
    _check_same("up", up, "gate", gate)


def _check_saved(
    grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, name: str, order: Order = (), *scale: float | None
) -> None:
    """A backend reads all of them by address: nothing but the right shape may reach it."""
    _check_same("grad", grad, "h", h)
    ordered = permute(h, order)
    _check_same("slot", slot, "h", ordered)
    wanted = _bits_shape(ordered, name)
    if bits.dtype != torch.uint8 or bits.shape != wanted or bits.device != h.device:
        raise ValueError(
            f"bits must be uint8 of shape {wanted} on {h.device} for {name} and h of shape {tuple(h.shape)}; "
            f"got {bits.dtype} of shape {tuple(bits.shape)} on {bits.device}"
        )


def _check_same(what: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if (tensor.shape, tensor.dtype, tensor.device) != (other.shape, other.dtype, other.device):
        raise ValueError(
            f"{what} must have shape, dtype and device of {other_name}, {tuple(other.shape)}, {other.dtype} on "
            f"{other.device}; got {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )


def _vmap_forward(
    info: Any, in_dims: tuple[int | None, ...], gate: Tensor, up: Tensor, name: str, order: Order = ()
) -> Any:
    scalars = gate.ndim == (0 if in_dims[0] is None else 1)
    inputs = library.batched((gate, up), in_dims[:2], info.batch_size)
    h, slot, bits = gated_forward(*inputs, name, library.batched_order(order))
    return ((h.squeeze(-1), slot.squeeze(-1), bits) if scalars else (h, slot, bits)), (0, 0, 0)


def _vmap_backward(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad: Tensor,
    h: Tensor,
    slot: Tensor,
    bits: Tensor,
    name: str,
    order: Order = (),
    *scale: float | None,
) -> Any:
    scalars = h.ndim == (0 if in_dims[1] is None else 1)
    saved = library.batched((grad, h, slot, bits), in_dims[:4], info.batch_size)
    grads = gated_backward(*saved, name, library.batched_order(order), *scale)
    return tuple(g.squeeze(-1) if scalars else g for g in grads), (0, 0)


def _vmap_backward_fused(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad: Tensor,
    h: Tensor,
    slot: Tensor,
    bits: Tensor,
    name: str,
    order: Order = (),
    *scale: float | None,
) -> Any:
    saved = library.batched((grad, h, slot, bits), in_dims[:4], info.batch_size)
    return gated_backward_fused(*saved, name, library.batched_order(order), *scale), 0


gated_forward = library.declare(
    "gated_forward(Tensor gate, Tensor up, str curve, int[] order=[]) -> (Tensor, Tensor, Tensor)",
    forward,
    check=_check_inputs,
    fake=_fake_forward,
    vmap=_vmap_forward,
    sharding=lambda gate, up, name, order=(): (
        ((d, place, place), (d, d)) for d, place in library.places(gate, order)
    ),
    traced=library.unless_named(computed_once(functools.partial(forward, select=backends.traced_activation))),
)
gated_backward = library.declare(
    "gated_backward(Tensor grad, Tensor h, Tensor slot, Tensor bits, str curve, int[] order=[], float? scale=None)"
    " -> (Tensor, Tensor)",
    _backward,
    check=_check_saved,
    fake=_fake_backward,
    vmap=_vmap_backward,
    sharding=lambda grad, h, slot, bits, name, order=(): (
        ((d, d), (d, d, place, place)) for d, place in library.places(h, order)
    ),
    traced=functools.partial(_backward, select=backends.traced_activation),
)
gated_backward_fused = library.declare(
    "gated_backward_fused(Tensor grad, Tensor h, Tensor slot, Tensor bits, str curve, int[] order=[],"
    " float? scale=None) -> Tensor",
    _backward_fused,
    check=_check_saved,
    fake=_fake_backward_fused,
    vmap=_vmap_backward_fused,
    sharding=lambda grad, h, slot, bits, name, order=(): (
        ((d,), (d, d, place, place)) for d, place in library.places(h, order)[:-1]
    ),
    traced=functools.partial(_backward_fused, select=backends.traced_activation),
)


# The Functions


class OptiActsGated(torch.autograd.Function):
    """(gate, up) -> (h, slot, bits, gate_edge, up_edge)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor, name: str) -> tuple[Tensor, ...]:
        return product(gate, up, name)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: tuple[Tensor, ...]) -> None:
        save_product(ctx, inputs[0], inputs[2], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *to_edges: Tensor | None) -> tuple[Tensor | None, ...]:
        return *product_backward(ctx, grad, *to_edges[-2:]), None


class OptiActsDualGated(OptiActsGated):
    """The same with forward mode, which dynamo does not accept. An edge with a tangent must be a full tensor."""

    @staticmethod
    def forward(gate: Tensor, up: Tensor, name: str) -> tuple[Tensor, ...]:
        return *_product(gate, up, name), torch.zeros_like(gate), torch.zeros_like(up)

    @staticmethod
    def jvp(ctx: Any, gate_tangent: Tensor | None, up_tangent: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        h, slot, bits, gate_edge, up_edge = ctx.saved_tensors
        edges = gate_edge, up_edge
        tangents = tuple(torch.zeros_like(h) if t is None else t for t in (gate_tangent, up_tangent))
        return _tangent(tangents, h, slot, bits, edges, ctx), None, None, *tangents


def _plain_forward(gate: Tensor, up: Tensor, name: str) -> Plain:
    order = memory_order(gate)
    h, slot, bits = forward(gate, up, name, order)
    edges = edges_of(gate)
    return (h, edges), (h, slot, bits, edges), decoding(name, tuple(order))


def plain_backward(
    by: Decoding, needed: Any, grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, edges: Tensor
) -> tuple[Tensor | None, ...]:
    return *library.directly(gated_backward, grad, h, slot, bits, by.name, by.order, by.scale), None


def watched_backward(ctx: Any, grad: Tensor | None, to_edges: Tensor | None) -> tuple[Tensor | None, ...]:
    h, slot, bits, edges = saved_tensors(ctx)
    by_gate, by_up = (None, None) if to_edges is None else to_edges
    if grad is None:
        return by_gate, by_up, None
    grads = _gradients(grad, h, slot, bits, *edges, ctx.info)
    return _sum(grads[0], by_gate), _sum(grads[1], by_up), None


plain_gated = plain("OptiActsPlainGated", _plain_forward, plain_backward, watched_backward)
"""(gate, up, name) -> (h, edges), past dispatcher and transforms; None where somebody may look on.

The edges are one tensor here, [gate's, up's].
"""


def _plain_fused_forward(gate_up: Tensor, name: str) -> Plain:
    gate, up = _halves(gate_up)
    order = memory_order(gate)
    h, slot, bits = forward(gate, up, name, order)
    edge = _edge(gate_up)
    return (h, edge), (h, slot, bits, edge), decoding(name, tuple(order))


def _plain_fused_backward(
    by: Decoding, needed: Any, grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, edge: Tensor
) -> tuple[Tensor, None]:
    return library.directly(gated_backward_fused, grad, h, slot, bits, by.name, by.order), None


def _watched_fused_backward(ctx: Any, grad: Tensor | None, to_edge: Tensor | None) -> tuple[Tensor | None, None]:
    h, slot, bits, edge = saved_tensors(ctx)
    if grad is None:
        return to_edge, None
    by: Decoding = ctx.info
    if differentiable():
        both = torch.cat(_gradients(grad, h, slot, bits, *edge.chunk(2, dim=-1), by), dim=-1)
    else:
        both = library.call(gated_backward_fused, grad, h, slot, bits, by.name, by.order)
    return _sum(both, to_edge), None


plain_gated_fused = plain(
    "OptiActsPlainGatedFused", _plain_fused_forward, _plain_fused_backward, _watched_fused_backward
)
"""(gate_up, name) -> (h, edge) likewise."""


class OptiActsGatedFused(torch.autograd.Function):
    """gate_up -> (h, slot, bits, edge), with gate_up = [gate | up] in the last dimension."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate_up: Tensor, name: str) -> tuple[Tensor, ...]:
        return *_product(*_halves(gate_up), name), _edge(gate_up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, ...]) -> None:
        save_product(ctx, inputs[0].chunk(2, dim=-1)[0], inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *to_edge: Tensor | None) -> tuple[Tensor | None, None]:
        h, slot, bits, edge = saved_tensors(ctx)
        if grad is None:
            return to_edge[-1], None
        grad = sharding.like(grad, h)
        if not differentiable():
            both = library.call(gated_backward_fused, grad, h, slot, bits, ctx.by.name, ctx.by.order, ctx.by.scale)
        else:
            both = torch.cat(_gradients(grad, h, slot, bits, *edge.chunk(2, dim=-1), ctx.by), dim=-1)
        return _sum(both, to_edge[-1]), None


class OptiActsDualGatedFused(OptiActsGatedFused):
    @staticmethod
    def forward(gate_up: Tensor, name: str) -> tuple[Tensor, ...]:
        return *_product(*_halves(gate_up), name), torch.zeros_like(gate_up)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor | None, ...]:
        h, slot, bits, edge = ctx.saved_tensors
        return _tangent(tangent.chunk(2, dim=-1), h, slot, bits, edge.chunk(2, dim=-1), ctx), None, None, tangent


def product(gate: Tensor, up: Tensor, name: str) -> tuple[Tensor, ...]:
    """h, slot, bits and the edges."""
    return *_product(gate, up, name), _edge(gate), _edge(up)


def _product(gate: Tensor, up: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    return library.call(gated_forward, gate, up, name, memory_order(gate))


def _halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


def _edge(input: Tensor) -> Tensor:
    return input.new_zeros(()).expand(input.shape)


def edges_of(input: Tensor) -> Tensor:
    """Two edges in one, of one element each."""
    return input.new_zeros(2).as_strided((2, *input.shape), (1, *([0] * input.ndim)))


def save_product(ctx: Any, gate: Tensor, name: str, output: tuple[Tensor, ...], scale: float | None = None) -> None:
    """Saves a product's outputs; with the ``scale`` of a dropout behind it, if there is one."""
    ctx.by = Decoding(name, tuple(memory_order(gate)), scale)
    ctx.mark_non_differentiable(*output[1:3])
    ctx.set_materialize_grads(False)
    remember(ctx, output[0])
    ctx.save_for_backward(unchanged(output[0]), *output[1:])
    ctx.save_for_forward(*output)


def product_backward(
    ctx: Any, grad: Tensor | None, by_gate: Tensor | None, by_up: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of gate and up from those of the product and of the edges."""
    h, slot, bits, gate_edge, up_edge = saved_tensors(ctx)
    if grad is None:
        return by_gate, by_up
    grads = _gradients(sharding.like(grad, h), h, slot, bits, gate_edge, up_edge, ctx.by)
    return _sum(grads[0], by_gate), _sum(grads[1], by_up)


def _sum(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b


def _gradients(*saved: Any) -> tuple[Tensor, Tensor]:
    """(grad * up * f'(gate), grad * act(gate)); through a Function only where it may be differentiated again."""
    return (OptiActsGradients.apply if differentiable() else OptiActsGradients.forward)(*saved)


def _tangent(tangents: tuple[Tensor, ...], h: Tensor, slot: Tensor, bits: Tensor, edges: Any, ctx: Any) -> Tensor:
    by_gate, _ = _gradients(tangents[0], h, slot, bits, *edges, ctx.by)
    _, by_up = _gradients(tangents[1], h, slot, bits, *edges, ctx.by)
    return by_gate + by_up


class OptiActsGradients(torch.autograd.Function):
    """grad -> (grad * up * f'(gate), grad * act(gate)), with the edges standing for gate and up."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor,
        h: Tensor,
        slot: Tensor,
        bits: Tensor,
        gate_edge: Tensor,
        up_edge: Tensor,
        by: Decoding,
    ) -> tuple[Tensor, Tensor]:
        return library.call(gated_backward, grad, h, slot, bits, by.name, by.order, by.scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.by = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        grad, *point = ctx.saved_tensors
        s, up, slope, bend = OptiActsPoint.apply(*point, ctx.by)
        if ctx.by.scale is not None:  # a factor of both gradients
            a, b = a * ctx.by.scale, b * ctx.by.scale
        by_grad = a * up * slope + b * s
        by_gate = grad * (a * up * bend + b * slope)
        by_up = grad * a * slope
        return by_grad.to(grad.dtype), None, None, None, by_gate.to(grad.dtype), by_up.to(grad.dtype), None

    @staticmethod
    def jvp(ctx: Any, grad_t: Tensor | None, _h: Any, _s: Any, _b: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        grad, *point = ctx.saved_tensors
        grad_t, gate_t, up_t = (torch.zeros_like(grad) if t is None else t for t in (grad_t, *rest[:2]))
        s, up, slope, bend = OptiActsPoint.apply(*point, ctx.by)
        by_gate = grad_t * up * slope + grad * (up_t * slope + gate_t * up * bend)
        by_up = grad_t * s + grad * gate_t * slope
        return by_gate.to(grad.dtype), by_up.to(grad.dtype)


class OptiActsPoint(torch.autograd.Function):
    """act(gate), up, f'(gate) and f''(gate) from what is saved: rarely needed, so in float64, speed aside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        h: Tensor, slot: Tensor, bits: Tensor, gate_edge: Tensor, up_edge: Tensor, by: Decoding
    ) -> tuple[Tensor, ...]:
        curve = curves.get(by.name)
        s, up, left, in_valley = decoders.read(permute(h, by.order), slot, bits, curve, by.scale)
        gate = torch.where(in_valley, slot.double(), decoders.inverse(curve, s.double(), left))
        slopes = curve.derivative(gate, torch), curve.second_derivative(gate, torch)
        if by.scale is not None:
            *_, holds_up = unpack_planes(bits, slot.shape, curve.decoder.side_bits + 1)
            slopes = tuple(slope.masked_fill(holds_up & (slot == 0), 0.0) for slope in slopes)  # dropped
        point = s, up, *slopes
        return tuple(restore(t.to(s.dtype), by.order) for t in point)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError("third derivatives of an output-saving gated product are not supported")
