"""The operations as torch.library ops: opaque to compilers, so that what is saved stays what we chose.

All take tensors of any strides and pack bits along the last dimension. ``curve`` is a curve's name.

    optiacts::activation_forward(Tensor x, str curve) -> (Tensor y, Tensor bits)
    optiacts::activation_forward_(Tensor(a!) x, str curve) -> Tensor bits
    optiacts::activation_backward(Tensor grad, Tensor y, Tensor bits, str curve) -> Tensor
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optiacts import backends, curves
from optiacts.bits import packed_shape

_library = torch.library.Library("optiacts", "DEF")


def _define(schema: str) -> None:
    _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag))


_define("activation_forward(Tensor x, str curve) -> (Tensor, Tensor)")
_define("activation_forward_(Tensor(a!) x, str curve) -> Tensor")
_define("activation_backward(Tensor grad, Tensor y, Tensor bits, str curve) -> Tensor")


@torch.library.impl(_library, "activation_forward", "CompositeExplicitAutograd")
def _activation_forward(x: Tensor, curve: str) -> tuple[Tensor, Tensor]:
    return backends.select(x).activation_forward(x, curves.get(curve))


@torch.library.impl(_library, "activation_forward_", "CompositeExplicitAutograd")
def _activation_forward_(x: Tensor, curve: str) -> Tensor:
    return backends.select(x).activation_forward_(x, curves.get(curve))


@torch.library.impl(_library, "activation_backward", "CompositeExplicitAutograd")
def _activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: str) -> Tensor:
    _check_saved(grad, y, bits)
    return backends.select(y).activation_backward(grad, y, bits, curves.get(curve))


@torch.library.register_fake("optiacts::activation_forward", lib=_library)
def _(x: Tensor, curve: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _fake_bits(x)


@torch.library.register_fake("optiacts::activation_forward_", lib=_library)
def _(x: Tensor, curve: str) -> Tensor:
    return _fake_bits(x)


@torch.library.register_fake("optiacts::activation_backward", lib=_library)
def _(grad: Tensor, y: Tensor, bits: Tensor, curve: str) -> Tensor:
    return torch.empty_like(y)


def _fake_bits(x: Tensor) -> Tensor:
    return x.new_empty(packed_shape(x.shape), dtype=torch.uint8)


def _batched(tensors: tuple[Tensor, ...], dims: tuple[int | None, ...], size: int) -> list[Tensor]:
    """The tensors of a vmap with the batch in front; scalars get a last dimension to pack their bit along."""
    front = [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    return [t.unsqueeze(-1) if t.ndim == 1 else t for t in front]


@torch.library.register_vmap("optiacts::activation_forward", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, curve: str) -> Any:
    scalars = x.ndim == 1
    y, bits = activation_forward(*_batched((x,), in_dims[:1], info.batch_size), curve)
    return (y.squeeze(-1) if scalars else y, bits), (0, 0)


@torch.library.register_vmap("optiacts::activation_backward", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, y: Tensor, bits: Tensor, curve: str) -> Any:
    scalars = y.ndim == (0 if in_dims[1] is None else 1)
    product = activation_backward(*_batched((grad, y, bits), in_dims[:3], info.batch_size), curve)
    return product.squeeze(-1) if scalars else product, 0


def _check_saved(grad: Tensor, y: Tensor, bits: Tensor) -> None:
    """A backend reads ``bits`` by address: nothing but the right shape may reach it."""
    shape = y.shape
    if grad.shape != shape:
        raise ValueError(f"grad must have the shape of y, {tuple(shape)}; got {tuple(grad.shape)}")
    if bits.dtype != torch.uint8 or bits.shape != packed_shape(shape):
        raise ValueError(
            f"bits must be uint8 of shape {packed_shape(shape)} for y of shape {tuple(shape)}; "
            f"got {bits.dtype} of shape {tuple(bits.shape)}"
        )
    device = y.device
    if grad.device != device or bits.device != device:
        raise ValueError(f"grad, y and bits must be on one device; got {grad.device}, {device}, {bits.device}")


activation_forward = torch.ops.optiacts.activation_forward.default
activation_forward_ = torch.ops.optiacts.activation_forward_.default
activation_backward = torch.ops.optiacts.activation_backward.default
