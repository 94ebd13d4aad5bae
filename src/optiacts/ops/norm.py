"""The norms: statistics of the input, and the gradients from the output (or the input) and the statistics.

    optiacts::norm_statistics(Tensor x, Tensor y, Tensor? scale, Tensor? shift, float eps, bool centered,
        bool remainder) -> (Tensor mean, Tensor rstd, Tensor bits)
    optiacts::norm_backward(Tensor grad, Tensor kept, Tensor? mean, Tensor rstd, Tensor? scale, Tensor? shift,
        Tensor? columns, Tensor? rescued, Tensor? bits, bool centered, bool output, ScalarType dtype,
        ScalarType? of_factors=None) -> (Tensor grad_x, Tensor grad_scale, Tensor grad_shift)

Tensors are (..., channels), mean and rstd (..., 1), scale and shift (channels,); see
``optiacts.backends.eager_norm``. grad_x is of ``dtype``, the other two of ``of_factors`` or, if that is None, in the
precision of the arithmetic.

The Function calls the norm's own forward and saves, in *output mode*, its output; the weight and the bias as they are
now, since whoever changes them unseen must not change the gradient; rstd; the remainder bits; and the columns of the
*rescued channels*, whose weight or bias would spoil x̂ = (y - bias) / weight, with the mean. In *input mode* it saves
the input and the statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optiacts import backends, casts
from optiacts._torch import run
from optiacts.backends import eager_norm
from optiacts.norms import Guard, Norm, Saved, arithmetic
from optiacts.ops import library, sharding
from optiacts.ops.functions import differentiable
from optiacts.ops.norm_channels import Channels, Known, changed, guard, look
from optiacts.overwritten import remember, saved_tensors
from optiacts.packing import packed_shape
from optiacts.recording import Form

# Returns y; or y and the mean and rstd of each row, as ``norm_statistics`` would make them, where it knows them.
Forward = Callable[[Tensor], Tensor | tuple[Tensor, Tensor, Tensor]]


class FunctionForm(Form):
    """A forward that is a function of PyTorch, told apart by what it is called with besides tensors."""

    def of(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """The forward."""
        raise NotImplementedError

    def widens(self, x: Tensor) -> bool:
        """Whether the forward of x takes the weight and the bias in the precision of the arithmetic as well."""
        return False


def norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: Norm,
    forward: Forward,
    keep_output: bool,
    cast: torch.dtype | None = None,
) -> Tensor:
    """``forward(x)``, which is the norm ``kind`` of x, with what its backward needs.

    ``cast``: in place of the output, keep a copy of it in this dtype, which is remembered for others to share.
    """
    y, *_, rounded = run(OptiActsNorm, x, weight, bias, kind, forward, keep_output, cast)
    if rounded is not None:
        casts.remember(y, rounded)
    result: Tensor = y
    return result


# The ops


def _statistics(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    centered: bool,
    remainder: bool,
    select: Any = backends.select_norm_statistics,
) -> tuple[Tensor, Tensor, Tensor]:
    kind = Norm(centered, eps, remainder=remainder)
    mean, rstd, bits = select(x, y, kind).norm_statistics(x, y, scale, shift, kind)
    return mean, rstd, x.new_empty(0, dtype=torch.uint8) if bits is None else bits


def _fake_statistics(
    x: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, centered: bool, remainder: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rstd = x.new_empty((*x.shape[:-1], 1), dtype=arithmetic(x.dtype))
    bits = packed_shape(y.shape, 2) if remainder and y.element_size() <= 2 else (0,)
    mean = torch.empty_like(rstd) if centered else rstd.new_empty(())
    return mean, rstd, x.new_empty(bits, dtype=torch.uint8)


def _remainder(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    select: Any = backends.select_norm_statistics,
) -> Tensor:
    kind, known = Norm(centered=mean.ndim > 0, eps=0.0, remainder=True), (mean, rstd)
    bits = select(x, y, kind).norm_statistics(x, y, scale, shift, kind, known)[2]
    assert bits is not None
    return bits


def _fake_remainder(x: Tensor, y: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(packed_shape(y.shape, 2), dtype=torch.uint8)


FIELDS = len(Saved._fields)


def _backward(
    grad: Tensor, *arguments: Any, select: Any = backends.select_norm_backward
) -> tuple[Tensor, Tensor, Tensor]:
    saved, (dtype, *of_factors) = Saved(*arguments[:FIELDS]), arguments[FIELDS:]
    return select(grad, saved, dtype).norm_backward(grad, saved, dtype, *of_factors)


def _fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    saved, (dtype, *of_factors) = Saved(*arguments[:FIELDS]), arguments[FIELDS:]
    of = (*of_factors, None)[0] or saved.rstd.dtype
    by_channel = saved.rstd.new_empty(saved.kept.shape[-1:], dtype=of)
    return grad.new_empty(grad.shape, dtype=dtype), by_channel, torch.empty_like(by_channel)


def _check_saved(grad: Tensor, kept: Tensor, *more: Any) -> None:
    """A backend reads what is saved by address: nothing but the right shape may reach it."""
    if grad.shape != kept.shape:
        raise ValueError(f"grad must have the shape of what was kept, {tuple(kept.shape)}; got {tuple(grad.shape)}")


def _whole(*arguments: Any) -> tuple[()]:
    """No way to distribute but to keep all of it everywhere."""
    return ()


norm_statistics = library.declare(
    "norm_statistics(Tensor x, Tensor y, Tensor? scale, Tensor? shift, float eps, bool centered, bool remainder)"
    " -> (Tensor, Tensor, Tensor)",
    _statistics,
    fake=_fake_statistics,
    sharding=_whole,
    traced=functools.partial(_statistics, select=backends.traced_norm_statistics),
)
norm_remainder = library.declare(  # of a 16-bit y, where mean and rstd are known
    "norm_remainder(Tensor x, Tensor y, Tensor? scale, Tensor? shift, Tensor mean, Tensor rstd) -> Tensor",
    _remainder,
    fake=_fake_remainder,
    sharding=_whole,
    traced=functools.partial(_remainder, select=backends.traced_norm_statistics),
)
norm_backward = library.declare(
    "norm_backward(Tensor grad, Tensor kept, Tensor? mean, Tensor rstd, Tensor? scale, Tensor? shift, "
    "Tensor? columns, Tensor? rescued, Tensor? bits, bool centered, bool output, ScalarType dtype, "
    "ScalarType? of_factors=None) -> (Tensor, Tensor, Tensor)",
    _backward,
    check=_check_saved,
    fake=_fake_backward,
    sharding=_whole,
    traced=functools.partial(_backward, select=backends.traced_norm_backward),
)


# The Function


class OptiActsNorm(torch.autograd.Function):
    """(x, weight, bias) -> (y, mean, rstd, rescued, rounded): y is the result, rounded a copy of it in another dtype.

    All but y are outputs so that second derivatives reach x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        kind: Norm,
        forward: Forward,
        keep_output: bool,
        cast: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]:
        made = forward(x)
        y, *known = made if isinstance(made, tuple) else (made,)
        rounded = None if cast in (None, y.dtype) else y.to(cast)
        told = y if rounded is None else rounded  # what is kept in output mode
        ctx.kind, ctx.dtype = kind, x.dtype
        ctx.set_materialize_grads(False)
        ctx.shared, ctx.shape = shared, shape = sharding.rows_of(x), x.shape
        own = (x, told, weight, bias)
        if shared is not None:
            told = y = shared.whole(shared.local(y), shape)
            own = (shared.local(x), shared.local(y), shared.parameter(weight), shared.parameter(bias))
        own_x, own_told, own_weight, own_bias = own
        # copies: the parameters themselves may be changed unseen before backward, by a fused optimizer for one
        scale, shift = kind.scale(own_weight, copy=True), kind.shift(own_bias, copy=True)
        rows, out_rows = kind.rows(own_x), kind.rows(own_told)
        keep_output = keep_output and out_rows.shape == rows.shape and told.element_size() <= x.element_size()
        keep_output, columns, ctx.known = (
            look(kind, own_weight, own_bias, scale, shift, told.dtype) if keep_output else Channels(False)
        )
        ctx.output = keep_output
        remainder = kind.remainder and keep_output and told.element_size() <= 2
        mean: Tensor | None
        by_rows = remainder and rounded is None
        mean, rstd, bits = learnt(kind, (rows, out_rows, scale, shift), known, by_rows, library.call)
        if remainder and rounded is not None:
            bits = eager_norm.remainder(kind.rows(y), out_rows)
        if not keep_output:
            remember(ctx, x)
            ctx.save_for_backward(x, weight, bias, mean if kind.centered else None, rstd)
            return y, None, rstd, None, rounded
        rescued = None if columns is None else rows.index_select(-1, columns)
        mean = mean if kind.centered and columns is not None else None
        remember(ctx, told)
        ctx.save_for_backward(told, weight, bias, mean, rstd, scale, shift, columns, rescued, bits)
        return y, mean, rstd, rescued, rounded

    @staticmethod
    def backward(
        ctx: Any,
        grad: Tensor | None,
        by_mean: Tensor | None,
        by_rstd: Tensor | None,
        by_rescued: Tensor | None,
        by_rounded: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        if by_rounded is not None:
            grad = by_rounded if grad is None else grad + by_rounded
        found_by = gradients if not differentiable() and by_rstd is None else differentiable_gradients
        shared: sharding.Rows | None = ctx.shared
        if shared is None:
            return *found_by(ctx, grad, by_mean, by_rstd, by_rescued), None, None, None, None
        dx, *by_parameters = found_by(ctx, None if grad is None else shared.local(grad), by_mean, by_rstd, by_rescued)
        by_weight, by_bias = (None if part is None else shared.total(part) for part in by_parameters)
        dx = None if dx is None else shared.whole(dx, ctx.shape)
        return dx, by_weight, by_bias, None, None, None, None


@dataclass(frozen=True)
class Kept:
    """What a backward goes by besides what was saved: the output, or the input; and who watches over its weights."""

    kind: Norm
    dtype: torch.dtype  # of the input
    output: bool
    known: Known | None = None


def learnt(
    kind: Norm,
    given: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    known: list[Tensor],
    remainder: bool,
    call: Callable[..., Any],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean and rstd of each row, which the norm's own forward may have told, and the remainder bits, if wanted.

    ``given``: the rows of x and y, scale and shift. ``call``: how ops are called.
    """
    rows = given[0]
    if known and known[1].dtype is arithmetic(rows.dtype):
        mean, rstd = known if kind.dims == 1 else (each.reshape(*rows.shape[:-1], 1) for each in known)
        return mean, rstd, call(norm_remainder, *given, mean, rstd) if remainder else None
    mean, rstd, bits = call(norm_statistics, *given, kind.eps, kind.centered, remainder)
    return mean, rstd, bits if remainder else None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _saved(ctx: Any) -> tuple[Any, ...]:
    """The saved tensors; of DTensors this rank's rows."""
    kept, weight, bias, *more = saved_tensors(ctx)
    shared: sharding.Rows | None = ctx.shared
    if shared is None:
        return kept, weight, bias, *more
    return shared.local(kept), shared.parameter(weight), shared.parameter(bias), *more


def gradients(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> Gradients:
    """The gradients of x, weight and bias, through the op."""
    if grad is None:
        return None, None, None
    info = Kept(ctx.kind, ctx.dtype, ctx.output, ctx.known)
    backward = functools.partial(library.directly if library.untouched(ctx, grad) else library.call, norm_backward)
    if ctx.known is not None:
        backward = functools.partial(guarded, ctx.known, getattr(ctx, "maker", None))
    return gradients_from(info, ctx.needs_input_grad, grad, _saved(ctx), backward)


def gradients_from(
    info: Kept, needed: tuple[bool, ...], grad: Tensor, of: tuple[Any, ...], backward: Callable[..., Any]
) -> Gradients:
    """The gradients of x, weight and bias from what was saved; ``backward`` takes what ``norm_backward`` does."""
    kind = info.kind
    kept, weight, bias, mean, rstd, *more = of
    scale, shift, columns, rescued, bits = more or (kind.scale(weight), kind.shift(bias), None, None, None)
    saved = Saved(kind.rows(kept), mean, rstd, scale, shift, columns, rescued, bits, kind.centered, info.output)
    same = weight is not None and (bias is None or bias.dtype is weight.dtype)
    of_factors = weight.dtype if same else None
    dx, by_scale, by_shift = backward(kind.rows(grad), *saved, info.dtype, of_factors)
    return (
        kind.restored(dx, grad) if needed[0] else None,
        _as(weight, by_scale) if needed[1] else None,
        _as(bias, by_shift) if needed[2] else None,
    )


def guarded(known: Known, maker: Any, grad: Tensor, *arguments: Any) -> Any:
    """The op, of a guarded weight and bias: by its kernel, where there is one and nobody wants to see an op."""
    saved, (dtype, of_factors) = Saved(*arguments[:FIELDS]), arguments[FIELDS:]
    if library.is_plain(grad):
        kernels = backends.select_norm_backward(grad, saved, dtype, guarded=True)
        if kernels.GUARDS:
            bounds = known.bounds(grad.shape[-1])
            return kernels.norm_backward(grad, saved, dtype, of_factors, Guard(known.noted(grad, maker), bounds))
    scale, shift = guard(known, saved.scale, saved.shift, saved.columns, maker)
    return library.call(norm_backward, grad, *saved._replace(scale=scale, shift=shift), dtype, of_factors)


def _as(parameter: Tensor, flat: Tensor) -> Tensor:
    """What is flat, in the shape and the dtype of the parameter."""
    shaped = flat if parameter.ndim == 1 else flat.view_as(parameter)
    return shaped if shaped.dtype is parameter.dtype else shaped.to(parameter.dtype)


def differentiable_gradients(
    ctx: Any, grad: Tensor | None, by_mean: Tensor | None, by_rstd: Tensor | None, by_rescued: Tensor | None
) -> Gradients:
    """The same in operations that can be differentiated again, with the gradients of the other outputs.

    In output mode x̂ is a function of y, the weight and the bias, and rstd and the mean are outputs of the Function:
    further derivatives find their way back to x. The parameters themselves take part, so they must be what they were.
    """
    kind: Norm = ctx.kind
    kept, weight, bias, mean, rstd, *more = _saved(ctx)
    if not ctx.output:
        return _recomputed(ctx, grad, by_rstd, kept, weight, bias)
    then, columns, rescued, bits = (more[0], more[1]), *more[2:]
    rows, scale, shift = kind.rows(kept), kind.scale(weight), kind.shift(bias)
    x_hat = eager_norm.normalised(
        Saved(rows, mean, rstd, scale, shift, columns, rescued, bits, kind.centered, output=True)
    )
    maker = getattr(ctx, "maker", None)
    if ctx.known is not None:
        then = guard(ctx.known, then[0], then[1], columns, maker)  # of NaN, which the parameters are not
    poison = changed(ctx.known, [(scale, then[0]), (shift, then[1])], maker)
    if poison is not None:
        rstd, x_hat = rstd.masked_fill(poison, torch.nan), x_hat.masked_fill(poison, torch.nan)
    count = rows.shape[-1]
    dx = torch.zeros_like(x_hat)
    by_weight = by_bias = None
    if grad is not None:
        g = kind.rows(grad).to(rstd.dtype)
        dx, by_scale, by_shift = eager_norm.gradients(g, x_hat, rstd, scale, kind.centered)
        by_weight = _as(weight, by_scale) if ctx.needs_input_grad[1] else None
        by_bias = _as(bias, by_shift) if ctx.needs_input_grad[2] else None
    if by_rstd is not None:  # d rstd / dx = -rstd^2 x̂ / n
        dx = dx - by_rstd * rstd.square() * x_hat / count
    if by_mean is not None:
        dx = dx + by_mean / count
    if by_rescued is not None:
        dx = dx.index_add(-1, columns, by_rescued.to(dx.dtype))
    return kind.restored(dx.to(ctx.dtype), kept), by_weight, by_bias


def _recomputed(
    ctx: Any, grad: Tensor | None, by_rstd: Tensor | None, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Gradients:
    """From the input: the norm in plain operations, differentiated by autograd."""
    kind: Norm = ctx.kind
    with torch.enable_grad():
        all_given: tuple[Any, ...] = (x, weight, bias)
        given = [t for t, needed in zip(all_given, ctx.needs_input_grad, strict=False) if needed]
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        if grad is not None:
            outputs.append(kind.reference(x, weight, bias))
            gradients.append(grad.to(outputs[0].dtype))
        if by_rstd is not None:
            outputs.append(kind.statistics(kind.rows(x))[1])
            gradients.append(by_rstd)
        found = iter(torch.autograd.grad(outputs, given, gradients, create_graph=True, allow_unused=True))
    dx, by_weight, by_bias = (next(found) if needed else None for needed in ctx.needs_input_grad[:3])
    return dx, by_weight, by_bias
