"""The autograd Functions: what is saved, backward, double backward, forward mode, vmap.

The Functions stand outside the opaque ops. Dimensions are permuted into memory order here, so that a
backend meets a channels_last tensor as a contiguous one and the bits keep a meaning of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optiacts import curves, layouts, ops
from optiacts.bits import unpack
from optiacts.curves.inverse import inverse


def activation(input: Tensor, curve: str) -> Tensor:
    """The activation with its output and side bits saved for backward."""
    return run(_Activation if torch.compiler.is_compiling() else _DualActivation, input, curve)[0]


def activation_(input: Tensor, curve: str) -> Tensor:
    """The same in the storage of ``input``."""
    if torch.compiler.is_compiling():  # compilers reuse storage on their own; tell them only the meaning
        return input.copy_(_Activation.apply(input.clone(), curve)[0])
    return run(_InplaceActivation, input, curve)[0]


def run(function: type[torch.autograd.Function], input: Tensor, *args: Any) -> Any:
    """``function.apply(input, *args)``, faster where neither a compiler nor torch.func looks on.

    ``Function.apply`` binds default arguments with ``inspect`` on every call, which takes half as long as a whole
    small activation. Outside transforms nothing else happens before its base class's ``apply``.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_functorch_wrapped_tensor(input)
    ):
        return function.apply(input, *args)
    return super(torch.autograd.Function, function).apply(input, *args)  # type: ignore[misc]


class _Activation(torch.autograd.Function):
    """x -> (y, bits), saving both. Dynamo accepts no Function with a jvp; ``_DualActivation`` adds it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, curve: str) -> tuple[Tensor, Tensor]:
        order = layouts.memory_order(input)
        y, bits = ops.activation_forward(layouts.permute(input, order), curve)
        return layouts.restore(y, order), bits

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        y, bits = output
        ctx.curve = inputs[1]
        ctx.mark_non_differentiable(bits)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, bits)
        ctx.save_for_forward(y, bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        y, bits = ctx.saved_tensors
        return _times_derivative(grad, y, bits, ctx.curve), None


class _DualActivation(_Activation):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, None]:
        y, bits = ctx.saved_tensors
        return _times_derivative(tangent, y, bits, ctx.curve), None


class _InplaceActivation(_DualActivation):
    """The same, in the storage of x."""

    generate_vmap_rule = False

    @staticmethod
    def forward(input: Tensor, curve: str) -> tuple[Tensor, Tensor]:
        return input, ops.activation_forward_(layouts.permute(input, layouts.memory_order(input)), curve)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_dirty(inputs[0])
        _Activation.setup_context(ctx, inputs, output)


def _times_derivative(grad: Tensor, y: Tensor, bits: Tensor, curve: str) -> Tensor:
    """``grad`` * f'(x); through a Function only where someone may differentiate it again."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _TimesDerivative.apply(grad, y, bits, curve)
    return _TimesDerivative.forward(grad, y, bits, curve)


class _TimesDerivative(torch.autograd.Function):
    """(grad, y) -> grad * f'(x). Its derivative by y is grad * f''(x) / f'(x), since dy = f'(x) dx."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, y: Tensor, bits: Tensor, curve: str) -> Tensor:
        order = layouts.memory_order(y)
        product = ops.activation_backward(layouts.permute(grad, order), layouts.permute(y, order), bits, curve)
        return layouts.restore(product, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str], output: Tensor) -> None:
        grad, y, bits, ctx.curve = inputs
        ctx.save_for_backward(grad, y, bits)
        ctx.save_for_forward(grad, y, bits)

    @staticmethod
    def backward(ctx: Any, gradgrad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad, y, bits = ctx.saved_tensors
        by_y = (gradgrad * grad * _Bend.apply(y, bits, ctx.curve)).to(y.dtype)
        return _times_derivative(gradgrad, y, bits, ctx.curve), by_y, None, None

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor | None, y_tangent: Tensor | None, *_: None) -> Tensor:
        grad, y, bits = ctx.saved_tensors
        tangent = torch.zeros_like(y)
        if grad_tangent is not None:
            tangent = tangent + _times_derivative(grad_tangent, y, bits, ctx.curve)
        if y_tangent is not None:
            tangent = tangent + (y_tangent * grad * _Bend.apply(y, bits, ctx.curve)).to(y.dtype)
        return tangent


class _Bend(torch.autograd.Function):
    """f''(x) / f'(x) from the output. Rarely needed, so the input is recovered in float64, speed aside.

    f' is the value that backward multiplies with, so that the product of both is f''(x) even near the
    minimum, where f' has lost its digits. Where that f' is 0, the result is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, bits: Tensor, curve: str) -> Tensor:
        order = layouts.memory_order(y)
        y = layouts.permute(y, order)
        slope = ops.activation_backward(torch.ones_like(y), y, bits, curve).double()
        known = curves.get(curve)
        x = inverse(known, y.double(), unpack(bits, y.shape))
        bend = torch.where(slope == 0, 0.0, known.second_derivative(x, torch) / slope)
        return layouts.restore(bend.to(torch.promote_types(y.dtype, torch.float32)), order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise NotImplementedError("third derivatives of an output-saving activation are not supported")
