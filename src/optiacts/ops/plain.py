"""Functions of plain tensors while nobody looks on: most calls are, and a small one has to wait for Python.

Such a Function is two functions of tensors alone, which can be recorded and replayed (see ``optiacts.replay``):

    forward(*inputs) -> (outputs, saved, info)
    backward(info, needs_input_grad, grad, *saved) -> the gradients of all inputs

``outputs`` is what the Function returns, ``saved`` the tensors that it saves, the one that may be changed in place
first, and ``info`` what else its backward goes by. The gradient is that of the first output. Where there are others,
or somebody looks on in backward (hooks on saved tensors, a mode, a profiler, a second derivative), this is called:

    watched(ctx, *grads), with ctx.info and optiacts.overwritten.saved_tensors(ctx)

Around them stands what csrc/host/function.cpp does in C, and this file in Python where that was not built.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optiacts import replay
from optiacts._torch import PLAIN, base_apply, is_exporting
from optiacts.ops import library
from optiacts.overwritten import remember_unseen, saved_tensors
from optiacts.recording import make

Plain = tuple[Any, tuple[Tensor | None, ...], Any]  # outputs, saved and info

_DTYPES = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


def plain(
    name: str,
    forward: Callable[..., Plain],
    backward: Callable[..., tuple[Tensor | None, ...]],
    watched: Callable[..., tuple[Tensor | None, ...]],
    any_gradient: bool = False,
    autocasts: bool = True,
) -> Callable[..., Any]:
    """What applies the Function ``name``: ``apply(*inputs)``, which is None where it is not for this call.

    It is for calls of which a gradient is wanted, of plain tensors of one device while nobody looks on. Compilers
    must not reach it.

    Args:
        any_gradient: the gradient of any tensor will do; else it is that of the first that must be wanted.
        autocasts: it is the same under autocast.
    """
    forward, backward = replay.replayed(_without_views(forward)), replay.replayed(backward)
    made = replay.function(forward, backward, watched, remember_unseen, any_gradient, autocasts)
    if made is None:
        function = _function(name, _forward(forward), _backward(backward, watched))
        return _apply(function, any_gradient, autocasts)
    in_c_forward, in_c_backward, finish = made
    return finish(base_apply(_function(name, in_c_forward, in_c_backward)))


def _without_views(forward: Callable[..., Plain]) -> Callable[..., Plain]:
    """The same, whose first output and what is saved of it is no view."""

    @functools.wraps(forward)
    def made(*inputs: Any) -> Plain:
        outputs, saved, info = forward(*inputs)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        own = no_view(first)
        if own is not first:
            outputs = (own, *outputs[1:]) if isinstance(outputs, tuple) else own
            saved = tuple(own if tensor is first else tensor for tensor in saved)
        return outputs, saved, info

    return made


def no_view(y: Tensor) -> Tensor:
    """The same in the same memory: PyTorch forbids changing a view in place that comes out of a Function."""
    return make(_unviewed, y) if y._is_view() else y


def _unviewed(y: Tensor) -> Tensor:
    return y.new_empty(0).set_(y)  # type: ignore[call-overload]


def _function(name: str, forward: Any, backward: Any) -> type[torch.autograd.Function]:
    return type(
        name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )


def _forward(compute: Callable[..., Any]) -> Callable[..., Any]:
    def forward(ctx: Any, *inputs: Any) -> Any:
        outputs, saved, ctx.info = compute(*inputs)
        remember_unseen(ctx, saved[0])
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        return outputs

    return forward


def _backward(compute: Callable[..., Any], watched: Callable[..., Any]) -> Callable[..., Any]:
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> Any:
        if grad is not None and not any(other is not None for other in others) and library.untouched(ctx, grad):
            return compute(ctx.info, ctx.needs_input_grad, grad, *saved_tensors(ctx))
        return watched(ctx, grad, *others)

    return backward


def _apply(function: type[torch.autograd.Function], any_gradient: bool, autocasts: bool) -> Callable[..., Any]:
    apply = base_apply(function)

    def applied(*inputs: Any) -> Any:
        return apply(*inputs) if _is_ready(inputs, any_gradient, autocasts) else None

    return applied


def _is_ready(inputs: tuple[Any, ...], any_gradient: bool, autocasts: bool) -> bool:
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    first = tensors[0]
    if not torch.is_grad_enabled() or not (first.requires_grad or (any_gradient and _any_requires_grad(tensors))):
        return False
    for tensor in tensors:
        if type(tensor) not in PLAIN or tensor.dtype not in _DTYPES or tensor.device != first.device:
            return False
    return (
        library.unseen(*tensors)
        and (autocasts or not torch.is_autocast_enabled(first.device.type))
        and not is_exporting()
        and torch._C._get_tracing_state() is None
    )


def _any_requires_grad(tensors: list[Tensor]) -> bool:
    return any(tensor.requires_grad for tensor in tensors)
