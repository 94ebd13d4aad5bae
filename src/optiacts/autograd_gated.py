"""The autograd Functions of gated products: h and one slot are saved; docs/gated.md says what the slot holds.

As in autograd.py the Functions stand outside the opaque ops and permute dimensions into memory order. Saved
besides h, slot and bits are *edges*: zeros of one element, expanded to the shape of the inputs. They are outputs
of the Function, and so the way on which a second derivative reaches gate and up, which are not saved themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from optiacts import curves, decoders, layouts, ops, sharding
from optiacts.autograd import Decoding, run
from optiacts.backends import gated_order


def gated(gate: Tensor, up: Tensor, curve: str) -> Tensor:
    """act(gate) * up, of two tensors of one shape and dtype."""
    function = _DualGated if _forward_mode() else _Gated
    return run(function, gate, up, curve)[0]


def gated_fused(gate_up: Tensor, curve: str) -> Tensor:
    """The same, of the halves of the last dimension of one tensor, which gets its gradient in one piece."""
    function = _DualGatedFused if _forward_mode() else _GatedFused
    return run(function, gate_up, curve)[0]


class _Gated(torch.autograd.Function):
    """(gate, up) -> (h, slot, bits, gate_edge, up_edge)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor, curve: str) -> tuple[Tensor, ...]:
        return *_forward(gate, up, curve), _edge(gate), _edge(up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: tuple[Tensor, ...]) -> None:
        _save(ctx, inputs[0], inputs[2], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *to_edges: Tensor | None) -> tuple[Tensor | None, ...]:
        h, slot, bits, gate_edge, up_edge = ctx.saved_tensors
        by_gate, by_up = to_edges[-2:]
        if grad is not None:
            grads = _gradients(sharding.like(grad, h), h, slot, bits, gate_edge, up_edge, ctx.by)
            by_gate, by_up = _sum(grads[0], by_gate), _sum(grads[1], by_up)
        return by_gate, by_up, None


class _DualGated(_Gated):
    """The same with forward mode, which dynamo does not accept. An edge with a tangent must be a full tensor."""

    @staticmethod
    def forward(gate: Tensor, up: Tensor, curve: str) -> tuple[Tensor, ...]:
        return *_forward(gate, up, curve), torch.zeros_like(gate), torch.zeros_like(up)

    @staticmethod
    def jvp(ctx: Any, gate_tangent: Tensor | None, up_tangent: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        h, slot, bits, gate_edge, up_edge = ctx.saved_tensors
        edges = gate_edge, up_edge
        tangents = tuple(torch.zeros_like(h) if t is None else t for t in (gate_tangent, up_tangent))
        return _tangent(tangents, h, slot, bits, edges, ctx), None, None, *tangents


class _GatedFused(torch.autograd.Function):
    """gate_up -> (h, slot, bits, edge), with gate_up = [gate | up] in the last dimension."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate_up: Tensor, curve: str) -> tuple[Tensor, ...]:
        return *_forward_fused(gate_up, curve), _edge(gate_up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, ...]) -> None:
        _save(ctx, inputs[0].chunk(2, dim=-1)[0], inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *to_edge: Tensor | None) -> tuple[Tensor | None, None]:
        h, slot, bits, edge = ctx.saved_tensors
        if grad is None:
            return to_edge[-1], None
        grad = sharding.like(grad, h)
        if not ctx.by.order and not _differentiable():
            both = ops.call(ops.gated_backward_fused, grad, h, slot, bits, ctx.by.curve)
        else:
            both = torch.cat(_gradients(grad, h, slot, bits, *edge.chunk(2, dim=-1), ctx.by), dim=-1)
        return _sum(both, to_edge[-1]), None


class _DualGatedFused(_GatedFused):
    @staticmethod
    def forward(gate_up: Tensor, curve: str) -> tuple[Tensor, ...]:
        return *_forward_fused(gate_up, curve), torch.zeros_like(gate_up)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor | None, ...]:
        h, slot, bits, edge = ctx.saved_tensors
        return _tangent(tangent.chunk(2, dim=-1), h, slot, bits, edge.chunk(2, dim=-1), ctx), None, None, tangent


def _forward_mode() -> bool:
    """Whether a forward-mode level is open (``torch.func.jvp``, ``jacfwd``, ``hessian``, ``dual_level``)."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def _forward(gate: Tensor, up: Tensor, curve: str) -> tuple[Tensor, Tensor, Tensor]:
    order = gated_order(gate)
    h, slot, bits = ops.call(ops.gated_forward, layouts.permute(gate, order), layouts.permute(up, order), curve)
    if gate.is_cpu and layouts.memory_order(gate):
        return torch.empty_like(gate).copy_(h), slot, bits  # in PyTorch's layout
    return layouts.restore(h, order), slot, bits


def _forward_fused(gate_up: Tensor, curve: str) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = gate_up.chunk(2, dim=-1)
    return _forward(gate, up, curve)


def _edge(input: Tensor) -> Tensor:
    return input.new_zeros(()).expand(input.shape)


def _save(ctx: Any, gate: Tensor, curve: str, output: tuple[Tensor, ...]) -> None:
    ctx.by = Decoding(curve, tuple(gated_order(gate)))
    ctx.mark_non_differentiable(*output[1:3])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output)
    ctx.save_for_forward(*output)


def _sum(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b


def _differentiable() -> bool:
    """Whether someone may differentiate what is computed now."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _gradients(*saved: Any) -> tuple[Tensor, Tensor]:
    """(grad * up * f'(gate), grad * act(gate)); through a Function only where it may be differentiated again."""
    return (_Gradients.apply if _differentiable() else _Gradients.forward)(*saved)


def _tangent(tangents: tuple[Tensor, ...], h: Tensor, slot: Tensor, bits: Tensor, edges: Any, ctx: Any) -> Tensor:
    by_gate, _ = _gradients(tangents[0], h, slot, bits, *edges, ctx.by)
    _, by_up = _gradients(tangents[1], h, slot, bits, *edges, ctx.by)
    return by_gate + by_up


class _Gradients(torch.autograd.Function):
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
        grad, h = layouts.permute(grad, by.order), layouts.permute(h, by.order)
        grads = ops.call(ops.gated_backward, grad, h, slot, bits, by.curve)
        return layouts.restore(grads[0], by.order), layouts.restore(grads[1], by.order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.by = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        grad, *point = ctx.saved_tensors
        s, up, slope, bend = _Point.apply(*point, ctx.by)
        by_grad = a * up * slope + b * s
        by_gate = grad * (a * up * bend + b * slope)
        by_up = grad * a * slope
        return by_grad.to(grad.dtype), None, None, None, by_gate.to(grad.dtype), by_up.to(grad.dtype), None

    @staticmethod
    def jvp(ctx: Any, grad_t: Tensor | None, _h: Any, _s: Any, _b: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        grad, *point = ctx.saved_tensors
        grad_t, gate_t, up_t = (torch.zeros_like(grad) if t is None else t for t in (grad_t, *rest[:2]))
        s, up, slope, bend = _Point.apply(*point, ctx.by)
        by_gate = grad_t * up * slope + grad * (up_t * slope + gate_t * up * bend)
        by_up = grad_t * s + grad * gate_t * slope
        return by_gate.to(grad.dtype), by_up.to(grad.dtype)


class _Point(torch.autograd.Function):
    """act(gate), up, f'(gate) and f''(gate) from what is saved: rarely needed, so in float64, speed aside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        h: Tensor, slot: Tensor, bits: Tensor, gate_edge: Tensor, up_edge: Tensor, by: Decoding
    ) -> tuple[Tensor, ...]:
        known = curves.get(by.curve)
        s, up, left, in_valley = decoders.read(layouts.permute(h, by.order), slot, bits, known)
        gate = torch.where(in_valley, slot.double(), decoders.inverse(known, s.double(), left))
        point = s, up, known.derivative(gate, torch), known.second_derivative(gate, torch)
        return tuple(layouts.restore(t.to(s.dtype), by.order) for t in point)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError("third derivatives of an output-saving gated product are not supported")
