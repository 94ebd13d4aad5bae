"""Chains: a norm and the activation after it, differentiated together from the last output.

    optiacts::chain_forward(Tensor z, str curve, int dims, bool last) -> (Tensor y, Tensor bits)
    optiacts::chain_statistics(Tensor rows, str statistics, int groups, float eps, bool centered, bool last)
        -> (Tensor mean, Tensor rstd)
    optiacts::chain_backward(Tensor grad, Tensor y, Tensor bits, Tensor rstd, Tensor? scale, Tensor? shift,
        Tensor? mean, Tensor? columns, Tensor? rescued, str curve, str statistics, bool centered, bool last,
        ScalarType dtype) -> (Tensor grad_x, Tensor grad_scale, Tensor grad_shift)

The first is the activation of the norm's output z, and the side bits, packed as ``Chain.rows`` lays them out, with
``dims`` and ``last``. The second tells what the norm has taken of an input that ``Chain.rows`` has made, where
PyTorch's norm does not tell it in the precision of the arithmetic. The third takes grad and y as ``Chain.rows`` makes
them; see ``chains.SavedChain``. grad_x is of ``dtype``, the other two are in the precision of the arithmetic.

The norm itself runs outside of the Function, as it is, and without leaving a graph; of small tensors GroupNorm and
LayerNorm run inside, by the op behind PyTorch's function, so that the whole call can be replayed. Saved are y, the
side bits, rstd, the weight and the bias as they are now, since whoever changes them unseen must not change the
gradient, and of the *rescued channels*, whose weight or bias would spoil x̂, the input, with the mean.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optiacts import backends, curves
from optiacts._torch import is_alone, is_fake, run
from optiacts.chains import Chain, SavedChain, furthest_told, loses_inputs, most_excess
from optiacts.norms import arithmetic
from optiacts.ops import library
from optiacts.ops.chain_scaled import keeping
from optiacts.ops.functions import differentiable
from optiacts.ops.norm import norm_statistics
from optiacts.ops.norm_channels import Channels, Known, guard, look, waits
from optiacts.ops.plain import Plain, plain
from optiacts.overwritten import remember, saved_tensors
from optiacts.packing import packed_shape
from optiacts.recording import Form


class Normed(NamedTuple):
    """What a norm made of its input: the output, and the statistics that it went by, where they are known."""

    z: Tensor
    mean: Tensor | None
    rstd: Tensor | None


class Factors(NamedTuple):
    """The weight and the bias of a norm, and copies of them as ``Chain.scale`` and ``Chain.shift`` make them."""

    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


def factors(weight: Tensor | None, bias: Tensor | None, kind: Chain) -> Factors:
    """With copies as they are now: who changes the parameters unseen must not change the gradient."""
    scale = None if weight is None else kind.scale(weight.detach(), copy=True)
    return Factors(weight, bias, scale, None if bias is None else kind.shift(bias.detach(), copy=True))


def chain(x: Tensor, given: Factors, kind: Chain, normed: Normed, channels: Channels) -> Tensor:
    """The activation of ``normed.z``, which is the norm ``kind`` of x, with what the backward of both needs."""
    weight, bias, scale, shift = given
    z, mean, rstd = normed
    last = kind.last(z)
    if rstd is None:
        mean, rstd = _taken(kind, kind.rows(x.detach(), last), last)
    columns, lost = channels.rescued, _lost(kind, z, last, channels.rescued)
    unseen = channels.known is not None and lost is not None  # until backward, and then told
    keep = lost is not None and not unseen and (waits(z.device) or bool(lost))
    if z.element_size() < x.element_size() or keep:  # channels were judged by the dtype of x
        columns, lost = torch.arange(z.numel() // _positions(kind, z), device=z.device), None
    told = _Told(kind, last, z, mean, rstd, scale, shift, columns, channels.known, lost)
    hooked = None if kind.dims else keeping(z)
    if hooked is None:
        found: Tensor | None = plain_chain(x, weight, bias, told)
        result: Tensor = run(OptiActsChain, x, weight, bias, told) if found is None else found
    else:
        with hooked:
            result = run(OptiActsChain, x, weight, bias, told)
    node = _noted(result, kind, channels.known)
    if hooked is not None and hooked.kept is not None and node is not None:
        node.kept = weakref.ref(hooked.kept)
        hooked.kept = None  # the graph's alone
    return result


def _noted(result: Tensor, kind: Chain, known: Known | None) -> Any:
    """The node of a chain's output, which knows what ``chain_scaled`` asks."""
    node: Any = result.grad_fn
    if not kind.dims and node is not None:
        node.saved_version, node.known = result._version, known
    return node


SMALL = 4 << 20  # bytes of a tensor, up to which memory of its own costs an output less than Python does


def tells_all(kind: Chain, x: Tensor) -> bool:
    """Whether ``normed`` computes the norm ``kind`` of x, where there is no autocast.

    Of groups of a single value PyTorch's function makes an error, of which the op behind it knows nothing.
    """
    told = kind.norm == "LayerNorm" or (kind.norm == "GroupNorm" and x.numel() > kind.groups)
    return told and x.is_contiguous()


def normed(kind: Chain, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The norm's output, mean and rstd, by the op that PyTorch's function calls."""
    if kind.dims:
        shape = tuple(x.shape[x.ndim - kind.dims :])
        made: tuple[Tensor, Tensor, Tensor] = backends.select_layer_norm(x).layer_norm(
            x, shape, weight, bias, kind.eps
        )
        return made
    samples, channels = x.shape[:2]
    of_channel = x.numel() // (samples * channels)
    return torch.native_group_norm(x, weight, bias, samples, channels, of_channel, kind.groups, kind.eps)


def small_chain(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: Chain, z: Tensor | None, rstd: Tensor | None
) -> Tensor | None:
    """The same of small tensors on a CPU, all of it replayed, while nobody looks on.

    ``z`` is the norm's output, or None for what ``normed`` computes. None where it is not for this call: ``chain``
    may still be.
    """
    if _loses_inputs(kind.curve, x.dtype) or (z is not None and z.dtype is not x.dtype):
        return None
    try:
        result: Tensor | None = plain_small_chain(x, weight, bias, z, rstd, kind)
    except _BadChannelError:
        return None
    if result is not None:
        _noted(result, kind, None)
    return result


_loses_inputs = functools.lru_cache(maxsize=1 << 12)(loses_inputs)


class _BadChannelError(Exception):
    """An output does not tell all channels."""


def _taken(kind: Chain, rows: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """mean and rstd of the input: by the norms' op where what is normalised together lies together, or nearly so."""
    of_batch, apart = kind.statistics == "batch", last and not kind.dims
    if torch.compiler.is_compiling() or (apart and waits(rows.device)):
        return kind.taken(rows, last)
    if apart or (of_batch and not waits(rows.device)):
        told: tuple[Tensor, Tensor] = library.call(
            chain_statistics, rows, kind.statistics, kind.groups, kind.eps, kind.centered, last
        )
        return told
    together = rows if of_batch else rows.reshape(rows.shape[0], kind.groups, -1)
    pieces = _pieces(together)
    if pieces == 1 and not of_batch:
        mean, rstd, _ = library.call(norm_statistics, together, together, None, None, kind.eps, kind.centered, False)
        return (mean.squeeze(-1) if kind.centered else torch.zeros_like(rstd.squeeze(-1))), rstd.squeeze(-1)
    parts, over = together.unflatten(2, (pieces, -1)), (0, 2) if of_batch else (2,)
    mean, rstd, _ = library.call(norm_statistics, parts, parts, None, None, 0.0, kind.centered, False)
    within = rstd.squeeze(-1).square().reciprocal().mean(over)
    if not kind.centered:
        return torch.zeros_like(within), (within + kind.eps).rsqrt()
    between, centre = torch.var_mean(mean.squeeze(-1), over, correction=0)
    return centre, (between + within + kind.eps).rsqrt()


_LONGEST = 16384  # elements of a row that kernels take whole: a GPU keeps it in registers


def _pieces(rows: Tensor) -> int:
    """Into how many equal pieces rows are cut, so that kernels take them; 1 as well where that cannot be."""
    length = rows.shape[-1]
    if length <= _LONGEST or not waits(rows.device):
        return 1
    fewest = -(-length // _LONGEST)
    return next((pieces for pieces in range(fewest, 4 * fewest) if length % pieces == 0), 1)


def _lost(kind: Chain, z: Tensor, last: bool, rescued: Tensor | None) -> Tensor | None:
    """Whether (bool, a number of z's device) too much of z lies where outputs do not tell it; None if nothing may."""
    if not loses_inputs(kind.curve, z.dtype) or is_fake(z):
        return None
    if rescued is not None:
        z = kind.rows(z, last).index_fill(2 if last else 1, rescued, 0.0)
    excess = backends.select_chain(z, curves.get(kind.curve)).excess(z, furthest_told(kind.curve, z.dtype))
    return excess > most_excess(z.dtype, z.numel())


def _positions(kind: Chain, z: Tensor) -> int:
    """How many elements a channel has."""
    shape = z.shape[: z.ndim - kind.dims] if kind.dims else (z.shape[0], *z.shape[2:])
    count = 1
    for length in shape:
        count *= length
    return count


# The ops


def _rows(dims: int) -> Chain:
    return Chain("", "", "rows", 0.0, dims)


def _forward(z: Tensor, name: str, dims: int, last: bool) -> tuple[Tensor, Tensor]:
    curve = curves.get(name)
    kind = _rows(dims)
    return backends.select_chain(z, curve).forward(z, curve, lambda tensor: kind.rows(tensor, last))


def _fake_forward(z: Tensor, name: str, dims: int, last: bool) -> tuple[Tensor, Tensor]:
    planes = curves.get(name).decoder.side_bits
    bits = packed_shape(_rows(dims).rows(z, last).shape, planes)
    return torch.empty_like(z), z.new_empty(bits, dtype=torch.uint8)


def _statistics(
    rows: Tensor, statistics: str, groups: int, eps: float, centered: bool, last: bool
) -> tuple[Tensor, Tensor]:
    kind = Chain("", "", statistics, eps, groups=groups, centered=centered)
    return backends.select_chain_statistics(rows, kind, last).statistics(rows, kind, last)


def _fake_statistics(
    rows: Tensor, statistics: str, groups: int, eps: float, centered: bool, last: bool
) -> tuple[Tensor, Tensor]:
    channels = rows.shape[2 if last else 1]
    shape = (channels,) if statistics == "batch" else (rows.shape[0], groups)
    mean = rows.new_empty(shape, dtype=arithmetic(rows.dtype))
    return mean, torch.empty_like(mean)


def _check_statistics(rows: Tensor, statistics: str, groups: int, eps: float, centered: bool, last: bool) -> None:
    if rows.ndim != 3:
        raise ValueError(f"rows must have three dimensions; got {[*rows.shape]}")
    if statistics not in ("rows", "batch"):
        raise ValueError(f"statistics must be 'rows' or 'batch'; got {statistics!r}")
    if groups < 1 or rows.shape[2 if last else 1] % groups:
        raise ValueError(f"groups must divide the channels of rows; got {groups} for {[*rows.shape]}")


def _backward(
    grad: Tensor, *saved_and_dtype: Any, select: Any = backends.select_chain_backward
) -> tuple[Tensor, Tensor, Tensor]:
    *fields, dtype = saved_and_dtype
    saved = SavedChain(*fields)
    return select(grad, saved, dtype).chain_backward(grad, saved, dtype)


def _fake_backward(grad: Tensor, *saved_and_dtype: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, dtype = saved_and_dtype
    saved = SavedChain(*fields)
    by_channel = saved.rstd.new_empty(saved.y.shape[2 if saved.last else 1])
    return grad.new_empty(grad.shape, dtype=dtype), by_channel, torch.empty_like(by_channel)


def _check_saved(grad: Tensor, *saved_and_dtype: Any) -> None:
    """A backend reads what is saved by address: nothing but the right shape may reach it."""
    *fields, _ = saved_and_dtype
    saved = SavedChain(*fields)
    y, bits = saved.y, saved.bits
    if y.ndim != 3 or grad.shape != y.shape:
        raise ValueError(f"grad and y must have one shape of three dimensions; got {[*grad.shape]} and {[*y.shape]}")
    wanted = packed_shape(y.shape, curves.get(saved.curve).decoder.side_bits)
    if bits.dtype != torch.uint8 or bits.shape != wanted:
        raise ValueError(f"bits must be uint8 of shape {wanted}; got {bits.dtype} of shape {tuple(bits.shape)}")
    channels = y.shape[2 if saved.last else 1]
    for argument, factor in (("scale", saved.scale), ("shift", saved.shift)):
        if factor is not None and factor.shape != (channels,):
            raise ValueError(f"{argument} must have shape {(channels,)}; got {tuple(factor.shape)}")
    rstd = saved.rstd
    of_groups = rstd.ndim == 2 and rstd.shape[0] == y.shape[0] and rstd.shape[1] and channels % rstd.shape[1] == 0
    if not (of_groups if saved.statistics == "rows" else rstd.shape == (channels,)):
        raise ValueError(f"rstd does not fit: {tuple(rstd.shape)} for {saved.statistics} of {tuple(y.shape)}")
    if saved.mean is not None and saved.mean.shape != rstd.shape:
        raise ValueError(f"mean must have the shape of rstd, {tuple(rstd.shape)}; got {tuple(saved.mean.shape)}")
    if (saved.columns is None) != (saved.rescued is None):
        raise ValueError("columns and rescued go together")
    if saved.columns is not None and saved.rescued is not None:
        shape = [*y.shape]
        shape[2 if saved.last else 1] = saved.columns.numel()
        if [*saved.rescued.shape] != shape:
            raise ValueError(f"rescued must have shape {shape}; got {[*saved.rescued.shape]}")


def _whole(*arguments: Any) -> tuple[()]:
    """No way to distribute but to keep all of it everywhere."""
    return ()


chain_forward = library.declare(
    "chain_forward(Tensor z, str curve, int dims, bool last) -> (Tensor, Tensor)",
    _forward,
    fake=_fake_forward,
    sharding=_whole,
)
chain_statistics = library.declare(
    "chain_statistics(Tensor rows, str statistics, int groups, float eps, bool centered, bool last)"
    " -> (Tensor, Tensor)",
    _statistics,
    check=_check_statistics,
    fake=_fake_statistics,
    sharding=_whole,
)
chain_backward = library.declare(
    "chain_backward(Tensor grad, Tensor y, Tensor bits, Tensor rstd, Tensor? scale, Tensor? shift, Tensor? mean, "
    "Tensor? columns, Tensor? rescued, str curve, str statistics, bool centered, bool last, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    check=_check_saved,
    fake=_fake_backward,
    sharding=_whole,
    traced=functools.partial(_backward, select=backends.traced_chain_backward),
)


# The Functions


class _Told(NamedTuple):
    """What a chain's forward goes by, besides what it is differentiated by."""

    kind: Chain
    last: bool
    z: Tensor  # the norm's output, whose memory the activation's may take
    mean: Tensor | None
    rstd: Tensor
    scale: Tensor | None
    shift: Tensor | None
    columns: Tensor | None
    known: Known | None
    lost: Tensor | None


_Parameter = tuple[torch.Size, torch.dtype]


@dataclass(frozen=True)
class _Chained(Form):
    """What a backward goes by besides what was saved."""

    kind: Chain
    last: bool
    dtype: torch.dtype  # of the input
    weight: _Parameter | None
    bias: _Parameter | None


_chained = functools.lru_cache(maxsize=1 << 12)(_Chained)  # one object for all alike is told apart in no time


class _Watched(NamedTuple):
    """The same where somebody watches over the weights, or over what is lost."""

    chained: _Chained
    known: Known
    lost: Tensor | None


def _forward_and_saved(x: Tensor, weight: Tensor | None, bias: Tensor | None, told: _Told) -> Plain:
    kind, last, z, mean, rstd, scale, shift, columns, known, lost = told
    y, bits = _activated(z, kind, last)
    rescued = None if columns is None else kind.chosen(x, columns, last)
    mean = mean if kind.centered and columns is not None else None
    chained = _chained(kind, last, x.dtype, _form(weight), _form(bias))
    info = chained if known is None else _Watched(chained, known, lost)
    return y, (y, bits, rstd, scale, shift, mean, columns, rescued), info


def _small_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, z: Tensor | None, rstd: Tensor | None, kind: Chain
) -> Plain:
    scale, shift = kind.scale(weight, copy=True), kind.shift(bias, copy=True)
    channels = look(kind, weight, bias, scale, shift, x.dtype)
    if not channels.keep_output or channels.rescued is not None:
        raise _BadChannelError
    if z is None:
        z, _, rstd = normed(kind, x, weight, bias)
    last = kind.last(z)
    if rstd is None or rstd.dtype is not arithmetic(x.dtype):
        _, rstd = _taken(kind, kind.rows(x, last), last)
    y, bits = library.directly(chain_forward, z, kind.curve, kind.dims, last)
    info = _chained(kind, last, x.dtype, _form(weight), _form(bias))
    return y, (y, bits, kind.shaped(rstd, x), scale, shift, None, None, None), info


def _backward_unseen(info: _Chained | _Watched, needed: tuple[bool, ...], grad: Tensor, *saved: Any) -> Any:
    return *_gradients(info, needed, None, grad, saved, unseen=True), None


def _small_backward_unseen(info: _Chained, needed: tuple[bool, ...], grad: Tensor, *saved: Any) -> Any:
    return *_gradients(info, needed, None, grad, saved, unseen=True), None, None, None


def _watched_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    y, *saved = saved_tensors(ctx)
    if differentiable():
        return *OptiActsChainGradient.apply(grad, y, ctx, *saved), None
    maker = getattr(ctx, "maker", None)
    return *_gradients(ctx.info, ctx.needs_input_grad, maker, grad, (y, *saved), ctx.state is None), None


def _small_watched_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_watched_backward(ctx, grad), None, None


plain_chain = plain("OptiActsPlainChain", _forward_and_saved, _backward_unseen, _watched_backward, any_gradient=True)
"""``OptiActsChain`` past dispatcher and transforms; None where somebody may look on."""

plain_small_chain = plain(
    "OptiActsSmallChain", _small_forward, _small_backward_unseen, _small_watched_backward, any_gradient=True
)
"""(x, weight, bias, the norm's output, rstd, kind) -> the activation's output, likewise."""


class OptiActsChain(torch.autograd.Function):
    """(x, weight, bias), and the norm's output with its statistics -> the activation's output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, told: _Told) -> Tensor:
        y, saved, ctx.info = _forward_and_saved(x, weight, bias, told)
        ctx.set_materialize_grads(False)
        remember(ctx, y)
        ctx.save_for_backward(*saved)
        result: Tensor = y
        return result

    backward = staticmethod(_watched_backward)


def _activated(z: Tensor, kind: Chain, last: bool) -> tuple[Tensor, Tensor]:
    """The activation's output, and its side bits. It takes the place of z where nobody else can see it.

    That spares memory which is new to the caches and, often, has to be cleared first. On other devices one kernel may
    do both.
    """
    if waits(z.device) or not library.is_plain(z) or not is_alone(z):
        y, bits = library.call(chain_forward, z, kind.curve, kind.dims, last)
        return y, bits
    curve = curves.get(kind.curve)
    return backends.select_chain(z, curve).forward_(z, curve, lambda tensor: kind.rows(tensor, last))


class OptiActsChainGradient(torch.autograd.Function):
    """The gradients, where somebody may differentiate them again: that is an error, and only then."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, y: Tensor, of: Any, *saved: Any) -> tuple[Tensor | None, ...]:
        ctx.maker = getattr(of, "maker", None)
        return _gradients(of.info, of.needs_input_grad, ctx.maker, grad, (y, *saved))

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        who = "" if ctx.maker is None else f" of {ctx.maker.optiacts_described()}"
        raise NotImplementedError(
            f"optiacts: second derivatives of a norm and its activation{who}, differentiated as one, are not "
            "supported. Convert with optiacts.convert(model, chains=False), or call the norm and the activation apart"
        )


def _gradients(
    info: _Chained | _Watched,
    needed: tuple[bool, ...],
    maker: Any,
    grad: Tensor,
    saved: tuple[Any, ...],
    unseen: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    y, bits, rstd, scale, shift, mean, columns, rescued = saved
    if isinstance(info, _Watched):
        scale, shift = guard(info.known, scale, shift, columns, maker, info.lost)
        info = info.chained
    told = bits, rstd, scale, shift, mean, columns, rescued
    found = gradients_from(info.kind, info.last, info.dtype, grad, y, *told, unseen=unseen)
    dx, by_scale, by_shift = found
    return (
        dx if needed[0] else None,
        _formed(by_scale, info.weight) if needed[1] and info.weight is not None else None,
        _formed(by_shift, info.bias) if needed[2] and info.bias is not None else None,
    )


def _form(parameter: Tensor | None) -> _Parameter | None:
    return None if parameter is None else (parameter.shape, parameter.dtype)


def _formed(flat: Tensor, form: _Parameter) -> Tensor:
    """What is flat, in the shape and the dtype of the parameter."""
    shape, dtype = form
    shaped = flat if len(shape) == 1 else flat.view(shape)
    return shaped if shaped.dtype is dtype else shaped.to(dtype)


def gradients_from(
    kind: Chain,
    last: bool,
    dtype: torch.dtype,
    grad: Tensor,
    y: Tensor,
    bits: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor | None = None,
    columns: Tensor | None = None,
    rescued: Tensor | None = None,
    unseen: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, in ``dtype``, of scale and of shift; bits as ``Chain.rows`` makes them.

    ``unseen``: nobody else had what was saved, so that there is nothing to check.
    """
    what = kind.curve, kind.statistics, kind.centered, last
    saved = SavedChain(kind.rows(y, last), bits, rstd, scale, shift, mean, columns, rescued, *what)
    rows = kind.rows(grad, last)
    if unseen and library.is_plain(rows):
        dx, by_scale, by_shift = library.directly(chain_backward, rows, *saved, dtype)
    else:
        dx, by_scale, by_shift = library.call(chain_backward, rows, *saved, dtype)
    return kind.restored(dx, y, last), by_scale, by_shift
