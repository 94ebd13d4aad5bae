"""Norms of plain tensors while nobody looks on: see ``optiacts.ops.plain``.

Saved is what ``optiacts.ops.norm`` saves. On a CPU the look at the weights is part of what is replayed; on devices
that make the host wait it comes before, and the kernel of the backward guards the weights.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from optiacts import backends
from optiacts.norms import Bounds, Guard, Norm, Saved
from optiacts.ops import library
from optiacts.ops.functions import differentiable
from optiacts.ops.norm import (
    FIELDS,
    Forward,
    FunctionForm,
    Gradients,
    Kept,
    differentiable_gradients,
    gradients,
    gradients_from,
    guarded,
    learnt,
    norm_backward,
)
from optiacts.ops.norm_channels import Channels, look, waits
from optiacts.ops.plain import Plain, plain
from optiacts.recording import Form
from optiacts.replay import replayed


class _Unwatched(Kept, Form):
    """The same of weights that nobody has to watch."""


_unwatched = functools.lru_cache(maxsize=1 << 12)(_Unwatched)  # one object for all alike is told apart in no time


def _plain_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: Norm, forward: Forward, output: bool
) -> Plain:
    if not output:
        y, *told = _made(forward, x, weight, bias)
        outputs, saved = _kept(x, y, (weight, bias, None, None), kind, False, None, tuple(told))
        return outputs, saved, _info(kind, x, Channels(False))
    if waits(x.device) and isinstance(forward, FunctionForm):
        found = _forward_in_one(x, weight, bias, kind, forward)
        if found is not None:
            return found
    if not waits(x.device):
        if isinstance(forward, FunctionForm) and forward.widens(x):
            factors = _copied(weight, bias, kind)
            y, *told = _made(forward, x, *factors[2:])
            return _looked_at(x, y, factors, kind, tuple(told))
        y, *told = _made(forward, x, weight, bias)
        return _keep(x, y, weight, bias, kind, *told)
    y, *told = _made(forward, x, weight, bias)
    channels = Channels(False)
    if _fits(kind, x, y):
        channels = look(kind, weight, bias, None, None, y.dtype)
        _told_dtype[forward, x.dtype, None if weight is None else weight.dtype] = y.dtype
    outputs, saved = _keep_by(x, y, weight, bias, kind, channels.keep_output, channels.rescued, *told)
    return outputs, saved, _info(kind, x, channels)


_told_dtype: dict[Any, torch.dtype] = {}  # of the output that fits, by the forward and the dtypes of input and weight


def _forward_in_one(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: Norm, forward: FunctionForm
) -> Plain | None:
    """The same where the dtype of the output is known before, so that all but the look can be replayed at once."""
    dtype = _told_dtype.get((forward, x.dtype, None if weight is None else weight.dtype))
    if dtype is None:
        return None
    channels = look(kind, weight, bias, None, None, dtype)
    made = _make_and_keep(x, weight, bias, kind, forward, dtype, channels.keep_output, channels.rescued)
    return None if made is None else (*made, _info(kind, x, channels))


def _made(
    forward: Forward | FunctionForm, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """The output, and mean and rstd where the forward tells them."""
    made = forward.of(x, weight, bias) if isinstance(forward, FunctionForm) else forward(x)
    return made if isinstance(made, tuple) else (made,)


def _fits(kind: Norm, x: Tensor, y: Tensor) -> bool:
    """Whether the output may be kept, as far as its form goes."""
    return kind.rows(y).shape == kind.rows(x).shape and y.element_size() <= x.element_size()


def _info(kind: Norm, x: Tensor, channels: Channels) -> Kept:
    if channels.known is None:
        return _unwatched(kind, x.dtype, channels.keep_output)
    return Kept(kind, x.dtype, channels.keep_output, channels.known)


@replayed
def _keep(x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, kind: Norm, *told: Tensor) -> Plain:
    return _looked_at(x, y, _copied(weight, bias, kind), kind, told)


_Factors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # weight, bias, scale, shift


def _copied(weight: Tensor | None, bias: Tensor | None, kind: Norm) -> _Factors:
    """With copies as they are now, in the precision of the arithmetic."""
    return weight, bias, kind.scale(weight, copy=True), kind.shift(bias, copy=True)


def _looked_at(x: Tensor, y: Tensor, factors: _Factors, kind: Norm, told: tuple[Tensor, ...]) -> Plain:
    """What the Function makes and saves, by what the factors look like."""
    channels = Channels(False)
    if _fits(kind, x, y):
        channels = look(kind, *factors, y.dtype)
    outputs, saved = _kept(x, y, factors, kind, channels.keep_output, channels.rescued, told)
    return outputs, saved, _info(kind, x, channels)


@replayed
def _make_and_keep(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: Norm,
    forward: FunctionForm,
    dtype: torch.dtype,
    keep_output: bool,
    columns: Tensor | None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]] | None:
    """The same from the input on; None if the output is of another dtype or shape than was expected."""
    y, *told = _made(forward, x, weight, bias)
    if y.dtype is not dtype or not _fits(kind, x, y):
        return None
    return _kept(x, y, _copied(weight, bias, kind), kind, keep_output, columns, tuple(told))


@replayed
def _keep_by(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: Norm,
    keep_output: bool,
    columns: Tensor | None,
    *told: Tensor,
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """The same where it is known already which channels to rescue."""
    return _kept(x, y, _copied(weight, bias, kind), kind, keep_output, columns, told)


def _kept(
    x: Tensor,
    y: Tensor,
    factors: _Factors,
    kind: Norm,
    keep_output: bool,
    columns: Tensor | None,
    told: tuple[Tensor, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """The outputs of the Function, and what it saves. ``told``: mean and rstd, where the forward told them."""
    weight, bias, scale, shift = factors
    rows, out_rows = kind.rows(x), kind.rows(y)
    remainder = kind.remainder and keep_output and y.element_size() <= 2
    mean, rstd, bits = learnt(kind, (rows, out_rows, scale, shift), [*told], remainder, library.directly)
    of_rows = mean if kind.centered else None
    if not keep_output:
        return (y, rstd), (x, weight, bias, of_rows, rstd)
    if columns is None:
        return (y, rstd), (y, weight, bias, None, rstd, scale, shift, None, None, bits)
    rescued = rows.index_select(-1, columns)
    return (y, rstd, mean, rescued), (y, weight, bias, of_rows, rstd, scale, shift, columns, rescued, bits)


def _plain_backward(info: Kept, needed: tuple[bool, ...], grad: Tensor, *saved: Any) -> tuple[Tensor | None, ...]:
    if info.known is None:
        return (
            *gradients_from(info, needed, grad, saved, functools.partial(library.directly, norm_backward)),
            None,
            None,
            None,
        )
    channels = next(factor for factor in saved[5:7] if factor is not None).shape[0]
    guard = info.known.noted(grad, None), *info.known.bounds(channels)
    try:
        found = _guarded_gradients(info.kind, info.dtype, info.output, needed, *guard, grad, *saved)
    except _NoGuardError:
        found = gradients_from(info, needed, grad, saved, functools.partial(guarded, info.known, None))
    return *found, None, None, None


class _NoGuardError(Exception):
    """No kernel guards such weights."""


@replayed
def _guarded_gradients(
    kind: Norm,
    dtype: torch.dtype,
    output: bool,
    needed: tuple[bool, ...],
    poisoned: Tensor,
    smallest: float,
    most: float,
    spread: float,
    reach: float,
    furthest: float,
    grad: Tensor,
    *saved: Any,
) -> Gradients:
    """The gradients by a kernel that guards the weights."""
    bounds = Bounds(smallest, most, spread, reach, furthest)

    def backward(grad: Tensor, *arguments: Any) -> Any:
        kept, (dtype, of_factors) = Saved(*arguments[:FIELDS]), arguments[FIELDS:]
        kernels = backends.select_norm_backward(grad, kept, dtype, guarded=True)
        if not kernels.GUARDS:
            raise _NoGuardError
        return kernels.norm_backward(grad, kept, dtype, of_factors, Guard(poisoned, bounds))

    return gradients_from(Kept(kind, dtype, output), needed, grad, saved, backward)


def _watched_backward(
    ctx: Any,
    grad: Tensor | None,
    by_rstd: Tensor | None,
    by_mean: Tensor | None = None,
    by_rescued: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    info: Kept = ctx.info
    ctx.kind, ctx.dtype, ctx.output, ctx.known, ctx.shared = info.kind, info.dtype, info.output, info.known, None
    found_by = gradients if not differentiable() and by_rstd is None else differentiable_gradients
    return *found_by(ctx, grad, by_mean, by_rstd, by_rescued), None, None, None


plain_norm = plain("OptiActsPlainNorm", _plain_forward, _plain_backward, _watched_backward, any_gradient=True)
"""(x, weight, bias, kind, forward, whether the output is kept) -> (y, rstd), and mean and rescued where there are
rescued channels: as ``OptiActsNorm`` past dispatcher and transforms; None where somebody may look on."""
