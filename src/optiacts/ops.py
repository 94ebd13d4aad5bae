"""The operations as torch.library ops: opaque to compilers, so that what is saved stays what we chose.

``curve`` is a curve's name. ``order`` is the memory order of the dimensions, empty if they are in it already;
bits are packed along the last dimension in that order (see ``optiacts.layouts`` and ``optiacts.packing``).

    optiacts::activation_forward(Tensor x, str curve, int[] order) -> (Tensor y, Tensor bits)
    optiacts::activation_forward_(Tensor(a!) x, str curve, int[] order) -> Tensor bits
    optiacts::activation_backward(Tensor grad, Tensor y, Tensor bits, str curve, int[] order) -> Tensor

    optiacts::gated_forward(Tensor gate, Tensor up, str curve) -> (Tensor h, Tensor slot, Tensor bits)
    optiacts::gated_backward(Tensor grad, Tensor h, Tensor slot, Tensor bits, str curve)
        -> (Tensor grad_gate, Tensor grad_up)
    optiacts::gated_backward_fused(Tensor grad, Tensor h, Tensor slot, Tensor bits, str curve) -> Tensor

The last one returns the two gradients as the halves of one tensor's rows. All gated results are contiguous.
Gated bits are two planes side by side in the last dimension, the side bits of gate (none for ReLU) and the
"slot holds up" bits: ``(*shape[:-1], planes * ceil(shape[-1] / 8))``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optiacts import backends, curves
from optiacts.layouts import Order, permute, restore
from optiacts.packing import packed_shape

_library = torch.library.Library("optiacts", "DEF")


def _define(schema: str) -> None:
    _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag))


_define("activation_forward(Tensor x, str curve, int[] order) -> (Tensor, Tensor)")
_define("activation_forward_(Tensor(a!) x, str curve, int[] order) -> Tensor")
_define("activation_backward(Tensor grad, Tensor y, Tensor bits, str curve, int[] order) -> Tensor")
_define("gated_forward(Tensor gate, Tensor up, str curve) -> (Tensor, Tensor, Tensor)")
_define("gated_backward(Tensor grad, Tensor h, Tensor slot, Tensor bits, str curve) -> (Tensor, Tensor)")
_define("gated_backward_fused(Tensor grad, Tensor h, Tensor slot, Tensor bits, str curve) -> Tensor")


@torch.library.impl(_library, "activation_forward", "CompositeExplicitAutograd")
def _activation_forward(x: Tensor, curve: str, order: Order) -> tuple[Tensor, Tensor]:
    return backends.select(x, known := curves.get(curve)).activation_forward(x, known, order)


@torch.library.impl(_library, "activation_forward_", "CompositeExplicitAutograd")
def _activation_forward_(x: Tensor, curve: str, order: Order) -> Tensor:
    return backends.select(x, known := curves.get(curve)).activation_forward_(x, known, order)


@torch.library.impl(_library, "activation_backward", "CompositeExplicitAutograd")
def _activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: str, order: Order) -> Tensor:
    _check_saved(grad, y, bits, curve, order)
    known, grad, y = curves.get(curve), permute(grad, order), permute(y, order)
    return restore(backends.select(y, known).activation_backward(grad, y, bits, known), order)


@torch.library.register_fake("optiacts::activation_forward", lib=_library)
def _(x: Tensor, curve: str, order: Order) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _fake_bits(x, curve, order)


@torch.library.register_fake("optiacts::activation_forward_", lib=_library)
def _(x: Tensor, curve: str, order: Order) -> Tensor:
    return _fake_bits(x, curve, order)


@torch.library.register_fake("optiacts::activation_backward", lib=_library)
def _(grad: Tensor, y: Tensor, bits: Tensor, curve: str, order: Order) -> Tensor:
    _check_saved(grad, y, bits, curve, order)
    return restore(y.new_empty(permute(y, order).shape), order)


def _fake_bits(x: Tensor, curve: str, order: Order) -> Tensor:
    return x.new_empty(packed_shape(permute(x, order).shape, curves.get(curve).decoder.side_bits), dtype=torch.uint8)


def _batched(tensors: tuple[Tensor, ...], dims: tuple[int | None, ...], size: int) -> list[Tensor]:
    """The tensors of a vmap with the batch in front; scalars get a last dimension to pack their bit along."""
    front = [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    return [t.unsqueeze(-1) if t.ndim == 1 else t for t in front]


def _batched_order(order: Order) -> list[int]:
    return [0, *(d + 1 for d in order)] if order else []


@torch.library.register_vmap("optiacts::activation_forward", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, curve: str, order: Order) -> Any:
    scalars = x.ndim == 1
    (batched,) = _batched((x,), in_dims[:1], info.batch_size)
    y, bits = activation_forward(batched, curve, _batched_order(order))
    return (y.squeeze(-1) if scalars else y, bits), (0, 0)


@torch.library.register_vmap("optiacts::activation_backward", lib=_library)
def _(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, y: Tensor, bits: Tensor, curve: str, order: Order
) -> Any:
    scalars = y.ndim == (0 if in_dims[1] is None else 1)
    batched = _batched((grad, y, bits), in_dims[:3], info.batch_size)
    product = activation_backward(*batched, curve, _batched_order(order))
    return product.squeeze(-1) if scalars else product, 0


def _check_saved(grad: Tensor, y: Tensor, bits: Tensor, curve: str, order: Order) -> None:
    """A backend reads ``bits`` by address: nothing but the right shape may reach it."""
    shape = y.shape
    if grad.shape != shape:
        raise ValueError(f"grad must have the shape of y, {tuple(shape)}; got {tuple(grad.shape)}")
    wanted = packed_shape(permute(y, order).shape if order else shape, curves.get(curve).decoder.side_bits)
    if bits.dtype != torch.uint8 or bits.shape != wanted:
        raise ValueError(
            f"bits must be uint8 of shape {wanted} for y of shape {tuple(shape)}; "
            f"got {bits.dtype} of shape {tuple(bits.shape)}"
        )
    device = y.device
    if grad.device != device or bits.device != device:
        raise ValueError(f"grad, y and bits must be on one device; got {grad.device}, {device}, {bits.device}")


@torch.library.impl(_library, "gated_forward", "CompositeExplicitAutograd")
def _gated_forward(gate: Tensor, up: Tensor, curve: str) -> tuple[Tensor, Tensor, Tensor]:
    _check_same("up", up, "gate", gate)
    return backends.select(gate, known := curves.get(curve)).gated_forward(gate, up, known)


@torch.library.impl(_library, "gated_backward", "CompositeExplicitAutograd")
def _gated_backward(grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, curve: str) -> tuple[Tensor, Tensor]:
    _check_gated(grad, h, slot, bits, curve)
    grad_gate, grad_up = h.new_empty(h.shape), h.new_empty(h.shape)
    backends.select(h, known := curves.get(curve)).gated_backward(grad, h, slot, bits, known, grad_gate, grad_up)
    return grad_gate, grad_up


@torch.library.impl(_library, "gated_backward_fused", "CompositeExplicitAutograd")
def _gated_backward_fused(grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, curve: str) -> Tensor:
    _check_gated(grad, h, slot, bits, curve)
    both = h.new_empty(_fused_shape(h))
    backends.select(h, known := curves.get(curve)).gated_backward(grad, h, slot, bits, known, *both.chunk(2, dim=-1))
    return both


@torch.library.register_fake("optiacts::gated_forward", lib=_library)
def _(gate: Tensor, up: Tensor, curve: str) -> tuple[Tensor, Tensor, Tensor]:
    bits = gate.new_empty(_gated_bits_shape(gate, curve), dtype=torch.uint8)
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape), bits


@torch.library.register_fake("optiacts::gated_backward", lib=_library)
def _(grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, curve: str) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape)


@torch.library.register_fake("optiacts::gated_backward_fused", lib=_library)
def _(grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, curve: str) -> Tensor:
    return h.new_empty(_fused_shape(h))


@torch.library.register_vmap("optiacts::gated_forward", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], gate: Tensor, up: Tensor, curve: str) -> Any:
    scalars = gate.ndim == (0 if in_dims[0] is None else 1)
    h, slot, bits = gated_forward(*_batched((gate, up), in_dims[:2], info.batch_size), curve)
    return ((h.squeeze(-1), slot.squeeze(-1), bits) if scalars else (h, slot, bits)), (0, 0, 0)


@torch.library.register_vmap("optiacts::gated_backward", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, h: Tensor, *saved: Any) -> Any:
    slot, bits, curve = saved
    scalars = h.ndim == (0 if in_dims[1] is None else 1)
    grads = gated_backward(*_batched((grad, h, slot, bits), in_dims[:4], info.batch_size), curve)
    return tuple(g.squeeze(-1) if scalars else g for g in grads), (0, 0)


@torch.library.register_vmap("optiacts::gated_backward_fused", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, h: Tensor, *saved: Any) -> Any:
    slot, bits, curve = saved
    return gated_backward_fused(*_batched((grad, h, slot, bits), in_dims[:4], info.batch_size), curve), 0


def _gated_bits_shape(h: Tensor, curve: str) -> tuple[int, ...]:
    return packed_shape(h.shape, curves.get(curve).decoder.side_bits + 1)


def _fused_shape(h: Tensor) -> tuple[int, ...]:
    return (*h.shape[:-1], 2 * h.shape[-1])


def _check_gated(grad: Tensor, h: Tensor, slot: Tensor, bits: Tensor, curve: str) -> None:
    """A backend reads all of them by address: nothing but the right shape may reach it."""
    _check_same("grad", grad, "h", h)
    _check_same("slot", slot, "h", h)
    wanted = _gated_bits_shape(h, curve)
    if bits.dtype != torch.uint8 or bits.shape != wanted or bits.device != h.device:
        raise ValueError(
            f"bits must be uint8 of shape {wanted} on {h.device} for {curve} and h of shape {tuple(h.shape)}; "
            f"got {bits.dtype} of shape {tuple(bits.shape)} on {bits.device}"
        )


def _check_same(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if (tensor.shape, tensor.dtype, tensor.device) != (other.shape, other.dtype, other.device):
        raise ValueError(
            f"{name} must have shape, dtype and device of {other_name}, {tuple(other.shape)}, {other.dtype} on "
            f"{other.device}; got {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )


activation_forward = torch.ops.optiacts.activation_forward.default
activation_forward_ = torch.ops.optiacts.activation_forward_.default
activation_backward = torch.ops.optiacts.activation_backward.default
gated_forward = torch.ops.optiacts.gated_forward.default
gated_backward = torch.ops.optiacts.gated_backward.default
gated_backward_fused = torch.ops.optiacts.gated_backward_fused.default


_KERNELS: dict[Any, Callable[..., Any]] = {
    activation_forward: _activation_forward,
    activation_backward: _activation_backward,
    gated_forward: _gated_forward,
    gated_backward: _gated_backward,
    gated_backward_fused: _gated_backward_fused,
}


def call(op: Any, first: Tensor, second: Any, *more: Any) -> Any:
    """``op(first, second, *more)``, past the dispatcher where nobody can want to see it: some 3 microseconds less.

    A compiler or a dispatch mode (fake tensors, selective checkpointing, ...) wants to see it, and so does whatever
    puts a key of its own on a tensor: a subclass, a transform, a vmap old or new, a meta device.
    """
    if torch.compiler.is_compiling() or _mode_count():
        return op(first, second, *more)
    known = _plain_keys(first.is_cuda)
    if _keys(first).raw_repr() != known or (isinstance(second, Tensor) and _keys(second).raw_repr() != known):
        return op(first, second, *more)
    return _KERNELS[op](first, second, *more)


_mode_count = torch._C._len_torch_dispatch_stack
_keys = torch._C._dispatch_keys


@functools.cache
def _plain_keys(on_cuda: bool) -> int:
    """The dispatch keys of a tensor that is nothing but one."""
    return _keys(torch.empty(0, device="cuda" if on_cuda else "cpu")).raw_repr()
