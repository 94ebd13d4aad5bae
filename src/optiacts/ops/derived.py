"""A Linear whose input was derived from a tensor that others keep, by a cast or a dropout, keeps that tensor instead.

Adapters in float32 on a model in 16 bits cast the input of each Linear that they adapt, and drop some of it. Each of
their own first Linears then holds a tensor of its own, 4 bytes per element. From the 16-bit input, which all of them
share with the norm or product that made it, and the bits of the dropout follows the same tensor, bit for bit.

While ``collecting`` is entered it is known how a tensor was derived; afterwards nothing is remembered.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from optiacts._torch import TRACERS, forward_mode, is_exporting, run, transforms_active
from optiacts.layouts import Order, memory_order
from optiacts.ops.dropout import _draw, _scaled


class Dropped(NamedTuple):
    """What was dropped of a tensor: the bits, by how much the rest was multiplied, and the memory order."""

    bits: Tensor
    scale: float
    order: Order


class Derivation(NamedTuple):
    """How ``tensor`` follows from ``source``: a cast to its own dtype, then perhaps a dropout."""

    tensor: Tensor
    source: Tensor
    versions: tuple[int, int]  # of both, when it was derived
    dropped: Dropped | None = None

    def holds(self, tensor: Tensor) -> bool:
        """Whether it is ``tensor`` that was derived, and neither was changed since."""
        return self.tensor is tensor and self.versions == (tensor._version, self.source._version)


class _Collections(threading.local):
    def __init__(self) -> None:
        self.stack: list[dict[int, Derivation]] = []


_collections = _Collections()


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """What is noted in here is known in here."""
    _collections.stack.append({})
    try:
        yield
    finally:
        _collections.stack.pop()


def note_cast(source: Tensor, result: Tensor) -> None:
    """``result`` is ``source`` in another dtype; noted where that, or what that was cast from, tells all of it."""
    before = derivation(source)
    if before is not None and before.dropped is None:
        source = before.source
    wider = source.dtype in (torch.bfloat16, torch.float16) and result.dtype in (torch.float32, torch.float64)
    if (
        _collections.stack
        and (wider or source.dtype is result.dtype)
        and _plain(source)
        and _plain(result)
        and source.device == result.device
    ):
        _note(result, source, None)


def derivation(x: Any) -> Derivation | None:
    """How ``x`` was derived; None if that is not known, or no longer so."""
    found = _collections.stack[-1].get(id(x)) if _collections.stack else None
    return found if found is not None and found.holds(x) else None


def dropout(x: Tensor, p: float) -> Tensor:
    """``optiacts.dropout`` in training, with its derivation noted. Only for what ``may_note`` allows."""
    told: list[Dropped] = []
    result = run(_ToldDropout, x, p, told)
    before = derivation(x)
    source = x if before is None else before.source
    if before is None or before.dropped is None:
        _note(result, source, told[0])
    return result


def _note(result: Tensor, source: Tensor, dropped: Dropped | None) -> None:
    found = Derivation(result, source, (result._version, source._version), dropped)
    _collections.stack[-1][id(result)] = found


def may_note(x: Any) -> bool:
    """Whether somebody collects derivations, and ``x`` is a tensor that they work for."""
    return bool(_collections.stack) and isinstance(x, Tensor) and _plain(x) and not transforms_active()


def linear(x: Any, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``linear(x, weight, bias)`` that keeps what ``x`` was derived from; None where it had better be PyTorch's."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not weight.requires_grad:
        return None
    found = derivation(x)
    if found is None or not _plain(weight) or (bias is not None and not _plain(bias)):
        return None
    if transforms_active() or forward_mode() or is_exporting() or torch._C._get_tracing_state() is not None:
        return None
    return run(DerivedLinear, x, weight, bias, found)


def _plain(x: Tensor) -> bool:
    kind = type(x)
    known = kind in (Tensor, torch.nn.Parameter) or f"{kind.__module__}.{kind.__name__}" in TRACERS
    return known and x.layout is torch.strided


class _ToldDropout(torch.autograd.Function):
    """The dropout with one bit per element saved, which tells them."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float, told: list[Dropped]) -> Tensor:
        ctx.order = tuple(memory_order(input))
        drawn, bits = _draw(input, p, ctx.order, overwrites=False)
        ctx.scale = drawn.scale
        ctx.save_for_backward(bits)
        told.append(Dropped(bits, drawn.scale, ctx.order))
        return drawn.result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (bits,) = ctx.saved_tensors
        return _scaled(grad, bits, ctx.scale, ctx.order), None, None


class DerivedLinear(torch.autograd.Function):
    """(x, weight, bias) -> x weight^T + bias, saving the weight and what x was derived from.

    Its backward is made of differentiable operations. The gradient of the weight reaches x's source by the
    derivation, so that second derivatives are right as well.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, found: Derivation) -> Tensor:
        dropped = found.dropped
        ctx.save_for_backward(found.source, weight, *(() if dropped is None else (dropped.bits,)))
        ctx.dtype, ctx.dropped = x.dtype, None if dropped is None else (dropped.scale, dropped.order)
        result = functional.linear(x, weight, bias)  # autocast casts here as it does outside
        ctx.bias_dtype = None if bias is None else bias.dtype
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, weight, *bits = ctx.saved_tensors
        compute = grad.dtype
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = (grad @ weight.to(compute)).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            x = source.to(ctx.dtype)
            if bits:
                x = _scaled(x, bits[0], *ctx.dropped)
            rows = grad.reshape(-1, grad.shape[-1]), x.to(compute).reshape(-1, x.shape[-1])
            for_weight = (rows[0].mT @ rows[1]).to(weight.dtype)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            for_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
        return for_x, for_weight, for_bias, None
