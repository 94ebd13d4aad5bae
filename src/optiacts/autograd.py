"""The autograd Functions: what is saved, backward, double backward, forward mode, vmap.

They stand outside the opaque ops: compilers then keep exactly what is saved here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optiacts import curves, ops
from optiacts.decoders import branch, inverse
from optiacts.layouts import Order, memory_order, permute, restore


def activation(input: Tensor, curve: str) -> Tensor:
    """The activation with its output and side bits saved for backward."""
    return run(_Activation if torch.compiler.is_compiling() else _DualActivation, input, curve)[0]


def activation_(input: Tensor, curve: str) -> Tensor:
    """The same in the storage of ``input``."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return input.copy_(activation(input, curve))  # tracers want the meaning; they reuse storage on their own
    return run(_InplaceActivation, input, curve)


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
        return ops.call(ops.activation_forward, input, curve, memory_order(input))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        y, bits = output
        ctx.curve, ctx.order = inputs[1], memory_order(inputs[0])
        ctx.mark_non_differentiable(bits)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, bits)
        ctx.save_for_forward(y, bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        y, bits = ctx.saved_tensors
        return _times_derivative(grad, y, bits, ctx.curve, ctx.order), None


class _DualActivation(_Activation):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, None]:
        y, bits = ctx.saved_tensors
        return _times_derivative(tangent, y, bits, ctx.curve, ctx.order), None


class _InplaceActivation(torch.autograd.Function):
    """The same in the storage of x. Its one output may then be a view; the bits are no output."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, curve: str) -> Tensor:
        ctx.curve, ctx.order = curve, memory_order(input)
        bits = ops.activation_forward_(input, curve, ctx.order)
        ctx.mark_dirty(input)
        ctx.save_for_backward(input, bits)
        ctx.save_for_forward(input, bits)
        return input

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, bits = ctx.saved_tensors
        return _times_derivative(grad, y, bits, ctx.curve, ctx.order), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        y, bits = ctx.saved_tensors
        return tangent.copy_(
            _times_derivative(tangent, y, bits, ctx.curve, ctx.order)
        )  # PyTorch wants it in place too


def _times_derivative(grad: Tensor, y: Tensor, bits: Tensor, curve: str, order: Order) -> Tensor:
    """``grad`` * f'(x); through a Function only where someone may differentiate it again."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _TimesDerivative.apply(grad, y, bits, Decoding(curve, tuple(order)))
    return ops.call(ops.activation_backward, grad, y, bits, curve, order)


@dataclass(frozen=True)
class Decoding:
    """How to read (y, bits). One object, because vmap would take a list among the arguments apart."""

    curve: str
    order: tuple[int, ...]


class _TimesDerivative(torch.autograd.Function):
    """(grad, y) -> grad * f'(x). Its derivative by y is grad * f''(x) / f'(x), since dy = f'(x) dx."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, y: Tensor, bits: Tensor, by: Decoding) -> Tensor:
        return ops.activation_backward(grad, y, bits, by.curve, by.order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Decoding], output: Tensor) -> None:
        grad, y, bits, ctx.by = inputs
        ctx.save_for_backward(grad, y, bits)
        ctx.save_for_forward(grad, y, bits)

    @staticmethod
    def backward(ctx: Any, gradgrad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad, y, bits = ctx.saved_tensors
        by_y = (gradgrad * grad * _Bend.apply(y, bits, ctx.by)).to(y.dtype)
        return _TimesDerivative.apply(gradgrad, y, bits, ctx.by), by_y, None, None

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor | None, y_tangent: Tensor | None, *_: None) -> Tensor:
        grad, y, bits = ctx.saved_tensors
        tangent = torch.zeros_like(y)
        if grad_tangent is not None:
            tangent = tangent + _TimesDerivative.apply(grad_tangent, y, bits, ctx.by)
        if y_tangent is not None:
            tangent = tangent + (y_tangent * grad * _Bend.apply(y, bits, ctx.by)).to(y.dtype)
        return tangent


class _Bend(torch.autograd.Function):
    """f''(x) / f'(x) from the output. Rarely needed, so the input is recovered in float64, speed aside.

    f' is the value that backward multiplies with, so that the product of both is f''(x) even near the
    minimum, where f' has lost its digits. Where that f' is 0, the result is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, bits: Tensor, by: Decoding) -> Tensor:
        slope = ops.activation_backward(torch.ones_like(y), y, bits, by.curve, by.order).double()
        curve = curves.get(by.curve)
        left = restore(branch(permute(y, by.order), bits, curve), by.order)
        bend = curve.second_derivative(inverse(curve, y.double(), left), torch) / slope
        return torch.where(slope == 0, 0.0, bend).to(torch.promote_types(y.dtype, torch.float32))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Decoding], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise NotImplementedError("third derivatives of an output-saving activation are not supported")
