"""One cast for all: under autocast every Linear casts what it is given, and of one tensor each makes a copy.

A converted Linear takes the copy that was made first: the same bits, held once for backward. A norm that keeps its
output rounded to autocast's dtype makes that copy itself. What is remembered of a tensor goes when the tensor goes.
The gradient of each taker goes back through a cast of its own, so that it is summed in float32 as ever.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from optiacts._torch import TRACERS, forward_mode, is_capturing, is_exporting, run, transforms_active


class _Copy(NamedTuple):
    """A copy of a tensor in autocast's dtype, and when and where it was made."""

    rounded: Tensor
    version: int  # of the tensor then
    queue: Any


_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast makes of a float32 ``x`` before a matrix product; None where it leaves it, or is off."""
    device = x.device.type
    if x.dtype is not torch.float32 or device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    return dtype if dtype.itemsize == 2 else None


def remember(x: Tensor, rounded: Tensor) -> None:
    """Notes that ``rounded`` is ``x`` in autocast's dtype."""
    _copies[x] = _Copy(rounded.detach(), x._version, _queue(x.device))


def shared(x: Any) -> Any:
    """``x`` as autocast casts it for a matrix product, from the one copy that all takers share.

    It is ``x`` itself where there is nothing to share: without autocast or a gradient, of what is not the result of
    an operation, where somebody else looks on (compilers, torch.func, tracing), and of what changed since.
    """
    if (
        torch.compiler.is_compiling()
        or not isinstance(x, Tensor)
        or not torch.is_grad_enabled()
        or x.grad_fn is None
        or not _plain(x)
        or autocast_dtype(x) is None
        or transforms_active()
        or forward_mode()
        or is_exporting()
        or torch._C._get_tracing_state() is not None
    ):
        return x
    rounded = _found(x)
    if rounded is None:
        with torch.no_grad():
            rounded = x.to(autocast_dtype(x))
        remember(x, rounded)
    return run(_Cast, x, (rounded,))


def _found(x: Tensor) -> Tensor | None:
    """The copy of ``x``, or of all that ``x`` is another shape of."""
    whole: Any = x._base if x._is_view() else x
    for of in (x, whole):
        copy = _copies.get(of)
        if copy is None or copy.rounded.dtype is not autocast_dtype(x):
            continue
        if copy.version != x._version or copy.queue != _queue(x.device):
            continue
        if of is x:
            return copy.rounded
        if x.numel() == of.numel() and x.is_contiguous() and of.is_contiguous() and copy.rounded.is_contiguous():
            return copy.rounded.view(x.shape)
    return None


def _queue(device: torch.device) -> Any:
    """What an operation on the device is queued in: in another queue nobody waits for the copy.

    A CUDA graph makes its copies anew each time that it is replayed, if they are made inside it.
    """
    if device.type == "cpu":
        return None
    return torch.cuda.current_stream(device), is_capturing(device)


def _plain(x: Tensor) -> bool:
    kind = type(x)
    return kind is Tensor or f"{kind.__module__}.{kind.__name__}" in TRACERS


class _Cast(torch.autograd.Function):
    """x -> the copy of it that is there already; saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, made: tuple[Tensor]) -> Tensor:
        ctx.dtype = x.dtype
        return made[0].new_empty(0).set_(made[0])  # type: ignore[call-overload]  # a tensor of its own, no view

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None
