"""The activation: x -> (output, side bits), and (gradient, output, side bits) -> gradient * f'(x).

    optiacts::activation_forward(Tensor x, str curve, int[] order) -> (Tensor y, Tensor bits)
    optiacts::activation_forward_(Tensor(a!) x, str curve, int[] order) -> Tensor bits
    optiacts::activation_backward(Tensor grad, Tensor y, Tensor bits, str curve, int[] order, float? scale=None)
        -> Tensor

``order`` is the memory order of the dimensions, empty if they are in it already; bits are packed along the last
dimension in that order (see ``optiacts.layouts`` and ``optiacts.packing``). A curve without side bits has empty ones.
``scale`` is that of a dropout behind the activation: see ``optiacts.ops.dropout``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from optiacts import backends, curves
from optiacts._torch import run, transforms_active
from optiacts.decoders import branch, inverse
from optiacts.layouts import Order, memory_order, permute, restore
from optiacts.ops import library
from optiacts.ops.functions import Decoding, decoding, differentiable, unchanged
from optiacts.ops.plain import Plain, plain
from optiacts.overwritten import remember, saved_tensors
from optiacts.packing import packed_shape


def activation(input: Tensor, name: str) -> Tensor:
    """The activation with its output and side bits saved for backward."""
    return run(OptiActsActivation if torch.compiler.is_compiling() else OptiActsDualActivation, input, name)[0]


def activation_(input: Tensor, name: str) -> Tensor:
    """The same in the storage of ``input``."""
    if torch.compiler.is_compiling() or transforms_active():
        return input.copy_(activation(input, name))  # tracers want the meaning; they reuse storage on their own
    return run(OptiActsInplaceActivation, input, name)


# The ops


def forward(x: Tensor, name: str, order: Order, select: Any = backends.select) -> tuple[Tensor, Tensor]:
    curve = curves.get(name)
    return select(x, curve).activation_forward(x, curve, order)


def _forward_(x: Tensor, name: str, order: Order) -> Tensor:
    curve = curves.get(name)
    return backends.select(x, curve).activation_forward_(x, curve, order)


def _backward(
    grad: Tensor,
    y: Tensor,
    bits: Tensor,
    name: str,
    order: Order,
    scale: float | None = None,
    select: Any = backends.select,
) -> Tensor:
    curve = curves.get(name)
    if order:
        grad, y = permute(grad, order), permute(y, order)
    grad_x = select(y, curve, scale is not None).activation_backward(grad, y, bits, curve, scale).contiguous()
    return restore(grad_x, order) if order else grad_x  # as compilers are told, however they lay out what they give


def _fake_forward(x: Tensor, name: str, order: Order) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _fake_forward_(x, name, order)


def _fake_forward_(x: Tensor, name: str, order: Order) -> Tensor:
    return x.new_empty(_bits_shape(x, name, order), dtype=torch.uint8)


def _fake_backward(grad: Tensor, y: Tensor, bits: Tensor, name: str, order: Order, *scale: float | None) -> Tensor:
    return restore(y.new_empty(permute(y, order).shape), order)


def _bits_shape(x: Tensor, name: str, order: Order) -> tuple[int, ...]:
    return packed_shape(permute(x, order).shape if order else x.shape, curves.get(name).decoder.side_bits)


def _check_saved(grad: Tensor, y: Tensor, bits: Tensor, name: str, order: Order, *scale: float | None) -> None:
    """A backend reads ``bits`` by address: nothing but the right shape may reach it."""
    shape = y.shape
    if grad.shape != shape:
        raise ValueError(f"grad must have the shape of y, {tuple(shape)}; got {tuple(grad.shape)}")
    wanted = _bits_shape(y, name, order)
    if bits.dtype != torch.uint8 or bits.shape != wanted:
        raise ValueError(
            f"bits must be uint8 of shape {wanted} for y of shape {tuple(shape)}; "
            f"got {bits.dtype} of shape {tuple(bits.shape)}"
        )
    device = y.device
    if grad.device != device or bits.device != device:
        raise ValueError(f"grad, y and bits must be on one device; got {grad.device}, {device}, {bits.device}")


def _vmap_forward(info: Any, in_dims: tuple[int | None, ...], x: Tensor, name: str, order: Order) -> Any:
    scalars = x.ndim == 1
    (batched,) = library.batched((x,), in_dims[:1], info.batch_size)
    y, bits = activation_forward(batched, name, library.batched_order(order))
    return (y.squeeze(-1) if scalars else y, bits), (0, 0)


def _vmap_backward(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad: Tensor,
    y: Tensor,
    bits: Tensor,
    name: str,
    order: Order,
    *scale: Any,
) -> Any:
    scalars = y.ndim == (0 if in_dims[1] is None else 1)
    batched = library.batched((grad, y, bits), in_dims[:3], info.batch_size)
    product = activation_backward(*batched, name, library.batched_order(order), *scale)
    return product.squeeze(-1) if scalars else product, 0


activation_forward = library.declare(
    "activation_forward(Tensor x, str curve, int[] order) -> (Tensor, Tensor)",
    forward,
    fake=_fake_forward,
    vmap=_vmap_forward,
    sharding=lambda x, name, order: (((d, place), (d,)) for d, place in library.places(x, order)),
    traced=library.unless_named(functools.partial(forward, select=backends.traced_activation)),
)
activation_forward_ = library.declare(
    "activation_forward_(Tensor(a!) x, str curve, int[] order) -> Tensor",
    _forward_,
    fake=_fake_forward_,
    sharding=lambda x, name, order: (((place,), (d,)) for d, place in library.places(x, order)),
)
activation_backward = library.declare(
    "activation_backward(Tensor grad, Tensor y, Tensor bits, str curve, int[] order, float? scale=None) -> Tensor",
    _backward,
    check=_check_saved,
    fake=_fake_backward,
    vmap=_vmap_backward,
    sharding=lambda grad, y, bits, name, order, *scale: (
        ((d,), (d, d, place)) for d, place in library.places(y, order)
    ),
    traced=functools.partial(_backward, select=backends.traced_activation),
)


# The Functions


class OptiActsActivation(torch.autograd.Function):
    """x -> (y, bits), saving both. Dynamo accepts no Function with a jvp; ``OptiActsDualActivation`` adds it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, name: str) -> tuple[Tensor, Tensor]:
        return library.call(activation_forward, input, name, memory_order(input))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        y, bits = output
        ctx.by = Decoding(inputs[1], tuple(memory_order(inputs[0])))
        ctx.mark_non_differentiable(bits)
        ctx.set_materialize_grads(False)
        remember(ctx, y)
        ctx.save_for_backward(unchanged(y), bits)
        ctx.save_for_forward(y, bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        y, bits = saved_tensors(ctx)
        return times_derivative(grad, y, bits, ctx.by), None


class OptiActsDualActivation(OptiActsActivation):
    """The same with forward mode."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, None]:
        y, bits = ctx.saved_tensors
        return times_derivative(tangent, y, bits, ctx.by), None


def _plain_forward(input: Tensor, name: str) -> Plain:
    order = memory_order(input)
    y, bits = forward(input, name, order)
    return y, (y, bits), decoding(name, tuple(order))


def plain_backward(by: Decoding, needed: Any, grad: Tensor, y: Tensor, bits: Tensor) -> tuple[Tensor, None]:
    return library.directly(activation_backward, grad, y, bits, by.name, by.order, by.scale), None


def watched_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
    if grad is None:
        return None, None
    y, bits = saved_tensors(ctx)
    return times_derivative(grad, y, bits, ctx.info), None


plain_activation = plain("OptiActsPlainActivation", _plain_forward, plain_backward, watched_backward)
"""(input, name) -> the activation, past dispatcher and transforms; None where somebody may look on."""


class OptiActsInplaceActivation(torch.autograd.Function):
    """The same in the storage of x. Its one output may then be a view; the bits are no output."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, name: str) -> Tensor:
        ctx.by = Decoding(name, tuple(memory_order(input)))
        bits = activation_forward_(input, name, ctx.by.order)
        ctx.mark_dirty(input)
        remember(ctx, input, dirty=True)
        ctx.save_for_backward(input, bits)
        ctx.save_for_forward(input, bits)
        return input

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, bits = saved_tensors(ctx)
        return times_derivative(grad, y, bits, ctx.by), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        y, bits = ctx.saved_tensors
        # PyTorch wants it in place too
        return tangent.copy_(times_derivative(tangent, y, bits, ctx.by))


def times_derivative(grad: Tensor, y: Tensor, bits: Tensor, by: Decoding) -> Tensor:
    """``grad`` * f'(x); through a Function only where someone may differentiate it again."""
    if differentiable():
        return OptiActsTimesDerivative.apply(grad, y, bits, by)
    return library.call(activation_backward, grad, y, bits, by.name, by.order, by.scale)


class OptiActsTimesDerivative(torch.autograd.Function):
    """(grad, y) -> grad * f'(x). Its derivative by y is grad * f''(x) / f'(x), since dy = f'(x) dx.

    Behind a dropout that scales, grad * f'(x) and dy both have the scale as a factor more, and the same holds.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, y: Tensor, bits: Tensor, by: Decoding) -> Tensor:
        return activation_backward(grad, y, bits, by.name, by.order, by.scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Decoding], output: Tensor) -> None:
        grad, y, bits, ctx.by = inputs
        ctx.save_for_backward(grad, y, bits)
        ctx.save_for_forward(grad, y, bits)

    @staticmethod
    def backward(ctx: Any, gradgrad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad, y, bits = ctx.saved_tensors
        by_y = (gradgrad * grad * OptiActsBend.apply(y, bits, ctx.by)).to(y.dtype)
        return OptiActsTimesDerivative.apply(gradgrad, y, bits, ctx.by), by_y, None, None

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor | None, y_tangent: Tensor | None, *_: None) -> Tensor:
        grad, y, bits = ctx.saved_tensors
        tangent = torch.zeros_like(y)
        if grad_tangent is not None:
            tangent = tangent + OptiActsTimesDerivative.apply(grad_tangent, y, bits, ctx.by)
        if y_tangent is not None:
            tangent = tangent + (y_tangent * grad * OptiActsBend.apply(y, bits, ctx.by)).to(y.dtype)
        return tangent


class OptiActsBend(torch.autograd.Function):
    """f''(x) / f'(x) from the output. Rarely needed, so the input is recovered in float64, speed aside.

    f' is the value that backward multiplies with, so that the product of both is f''(x) even near the
    minimum, where f' has lost its digits. Where that f' is 0, the result is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, bits: Tensor, by: Decoding) -> Tensor:
        slope = activation_backward(torch.ones_like(y), y, bits, by.name, by.order, by.scale).double()
        curve = curves.get(by.name)
        left = restore(branch(permute(y, by.order), bits, curve), by.order)
        scale = 1.0 if by.scale is None else by.scale
        bend = curve.second_derivative(inverse(curve, y.double() / scale, left), torch) * scale / slope
        return torch.where(slope == 0, 0.0, bend).to(torch.promote_types(y.dtype, torch.float32))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Decoding], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise NotImplementedError("third derivatives of an output-saving activation are not supported")
