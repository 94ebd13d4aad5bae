"""Which norm a module computes, found out by what it computes: its values and its gradients.

As with activations, only a forward that is seen to be pure (norm_purity.py) is ever run, on probes and parameters of
our own. It has to agree with ``Norm.reference``, differentiated by autograd, on rows from far below to far above eps,
so that the place and the value of eps are told as well. Norms tell dtypes apart: each combination of dtypes, and each
number of dimensions, is tried, and those that agreed count.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module

from optiacts.conversion.norm_purity import norm_pins
from optiacts.conversion.purity import ImpureError, Pin
from optiacts.conversion.recognition import Findings, alone, definition, distinct
from optiacts.norms import Norm, arithmetic

Dtypes = tuple[torch.dtype, torch.dtype | None]  # of the input, and of the parameters if there are any
Parameters = dict[str, Tensor]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_16_BITS = (torch.bfloat16, torch.float16)
_PAIRS = (
    *zip(_DTYPES, _DTYPES, strict=True),
    *((x, torch.float32) for x in _16_BITS),  # master weights, or weights left in float32
    *((torch.float32, weight) for weight in _16_BITS),
)
_FEWEST = 4  # channels: with fewer, different norms compute the same
_PROBED = 1 << 14  # elements of a probe
_EXACT = 3e-6  # of values: many norms compute in float32 whatever they get
_GRADIENTS = 3e-5  # likewise
_ROUNDINGS = 4  # of the output's dtype, between the norm and a norm that rounds in between
_ONCE = 0.95  # of the outputs; where a norm rounds in between, hardly more than half of them
_COARSE = 0.1  # of the gradients of norms that compute in 16 bits


@dataclass(frozen=True, eq=False)
class RecognisedNorm:
    """What a module computes, as long as everything that it depends on stays as it is.

    ``kinds`` are the norms by dtypes, for their eps may differ; ``ndims`` the numbers of dimensions that were tried.
    ``weight`` and ``bias`` are the names of the parameters, empty where there are none, and ``shape`` is theirs.
    """

    kinds: dict[Dtypes, Norm]
    ndims: frozenset[int]
    weight: str
    bias: str
    shape: tuple[int, ...]
    pins: tuple[Pin, ...]

    @property
    def name(self) -> str:
        """The field's name of it."""
        return "LayerNorm" if self.centered else "RMSNorm"

    @property
    def offset(self) -> float:
        """What is added to the weight."""
        return next(iter(self.kinds.values())).offset

    @property
    def centered(self) -> bool:
        """Whether it is a LayerNorm."""
        return next(iter(self.kinds.values())).centered

    def parameters(self, module: Module) -> tuple[Tensor | None, Tensor | None] | None:
        """The weight and the bias now; None if one of them is not there, or not of the form that it had."""
        weight = bias = None
        if self.weight:
            weight = _parameter(module, self.weight)
            if not isinstance(weight, Tensor) or weight.shape != self.shape:
                return None
        if self.bias:
            bias = _parameter(module, self.bias)
            if not isinstance(bias, Tensor) or bias.shape != self.shape:
                return None
        if weight is not None and bias is not None and weight.dtype is not bias.dtype:
            return None
        return weight, bias

    def kind(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Norm | None:
        """The norm that the module computes of ``x``; None if that was not tried."""
        given = weight if weight is not None else bias
        kind = self.kinds.get((x.dtype, None if given is None else given.dtype))
        if kind is None or x.ndim not in self.ndims or x.numel() == 0:
            return None
        if kind.channels_first:
            return kind if given is None or given.numel() == x.shape[1] else None
        return kind if given is None or given.shape == x.shape[x.ndim - kind.dims :] else None


def _parameter(module: Module, name: str) -> Any:
    """What the module's own code finds there without running any: no property, as of a parametrisation."""
    own = module.__dict__
    return own[name] if name in own else own["_parameters"].get(name)


def recognise_norm(module: Module) -> RecognisedNorm:
    """Which norm a module computes; ``ImpureError`` says why that is not known."""
    kind = getattr(type(module), "optiacts_original", type(module))
    forward = kind.forward
    if not isinstance(forward, types.FunctionType):
        raise ImpureError("its code is not seen")
    if forward.__code__.co_argcount != 2 or forward.__code__.co_kwonlyargcount or forward.__code__.co_flags & 0x0C:
        raise ImpureError("it takes more than one input")
    inner, names, fused = norm_pins(forward, module)
    pins = distinct((Pin(kind, ("forward",), forward), *definition(forward), *inner))
    shapes = tuple(tuple(module._parameters[name].shape) for name in names)  # type: ignore[union-attr]

    def find() -> RecognisedNorm:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's about dtypes that do not go together
            return _compared(_Trial(module, kind, pins, names, shapes), fused)

    return _found.of(forward, pins, shapes, find)


_found: Findings[RecognisedNorm] = Findings()


class _Layout(NamedTuple):
    """Where the channels are: in the last dimensions, or in dimension 1."""

    channels: tuple[int, ...]
    first: bool

    def shape(self, ndim: int, channels_each: int) -> tuple[int, ...] | None:
        """A shape of ``ndim`` dimensions with so many rows, more or less; None if there is none."""
        others = ndim - len(self.channels)
        if others < 0 or (self.first and ndim < 2):
            return None
        rows = max(18, min(48, _PROBED // channels_each))
        lengths = [rows] if others == 1 else [2] * (others - 2) + [3, max(3, rows // (3 * 2 ** (others - 2)))]
        lengths = lengths if others else []
        return (lengths[0], *self.channels, *lengths[1:]) if self.first else (*lengths, *self.channels)


class _Trial:
    """Runs a module's forward on probes and substitutes."""

    def __init__(
        self,
        module: Module,
        kind: type[Module],
        pins: tuple[Pin, ...],
        names: tuple[str, ...],
        shapes: tuple[tuple[int, ...], ...],
    ) -> None:
        self._module, self._kind, self.pins, self.names = module, kind, pins, names
        if len(names) > 2 or len(set(shapes)) > 1:
            raise ImpureError("it has other parameters than a weight and a bias")
        self.shape = shapes[0] if shapes else ()
        generator = torch.Generator().manual_seed(11)
        self.parameters: Parameters = {}
        for name in names:
            size = 0.4 + torch.rand(self.shape, generator=generator, dtype=torch.float64)
            sign = torch.randint(0, 2, self.shape, generator=generator) * 2 - 1
            self.parameters[name] = size * sign

    def layouts(self) -> Iterator[_Layout]:
        """Where the channels may be."""
        if self.shape:
            long = tuple(length for length in self.shape if length > 1)
            known = [long]
        else:
            pinned = [pin.value for pin in self.pins]
            known = [v for v in pinned if isinstance(v, tuple) and v and all(isinstance(n, int) for n in v)]
            known += [(24,)]
        for channels in dict.fromkeys(known):
            if math.prod(channels) >= _FEWEST:
                yield _Layout(channels, False)
                if len(channels) == 1:
                    yield _Layout(channels, True)

    def substitutes(self, dtype: torch.dtype | None) -> Parameters:
        """The parameters of our own, in a dtype."""
        return {name: parameter.to(dtype, copy=True) for name, parameter in self.parameters.items()}

    def run(self, x: Tensor, dtype: torch.dtype | None, grad: Tensor | None = None) -> _Outcome | None:
        """What comes out, and the gradients for ``grad``; None if it fails."""
        leaves = {n: p.detach().requires_grad_() for n, p in self.substitutes(dtype).items()}
        # a module without the user's parameters, hooks and state; of the class that it had before a conversion
        one = alone(self._module, self.pins)
        own = {name: leaves.get(name) for name in self._module._parameters}  # those that are None stay that
        one.__dict__ |= {"_parameters": own, "_buffers": {}, "_modules": {}}
        if type(one) is not self._kind:
            one.__class__ = self._kind
        given = x.clone().requires_grad_()
        before = given._version
        try:
            y = self._kind.forward(one, given)
            if not isinstance(y, Tensor) or y.shape != x.shape or given._version != before or y is given:
                return None
            grad = torch.ones_like(y) if grad is None else grad.to(y.dtype)
            # not as grad_outputs, for which PyTorch imports its symbolic shapes: half a second; the product is exact
            found = torch.autograd.grad((y * grad).sum(), [given, *leaves.values()], allow_unused=True)
        except Exception:
            return None
        if any(gradient is None for gradient in found):
            return None
        return _Outcome(y.detach(), found[0], dict(zip(leaves, found[1:], strict=True)))


@dataclass
class _Outcome:
    y: Tensor
    dx: Tensor
    by_parameter: Parameters


class _Role(NamedTuple):
    """Which parameter is what."""

    weight: str
    bias: str
    offset: float


def _roles(names: tuple[str, ...]) -> Iterator[_Role]:
    if not names:
        yield _Role("", "", 0.0)
    for weight, bias in [(names[0], ""), ("", names[0])] if len(names) == 1 else itertools.permutations(names, 2):
        for offset in (0.0, 1.0) if weight else (0.0,):
            yield _Role(weight, bias, offset)


def _compared(trial: _Trial, fused: bool) -> RecognisedNorm:
    """The norm that agrees."""
    ran = False
    for layout in trial.layouts():
        # some take parameters of float32 alone; of another number of dimensions none computes something else
        for own, ndim in itertools.product((torch.float64, torch.float32), (3, 4, 2, 5, 1)):
            x = _probe(layout, ndim, torch.float64)
            outcome = None if x is None else trial.run(x, own, _upstream(x.shape))
            if x is None or outcome is None:
                continue
            ran = True
            for centered, role in itertools.product((False, True), _roles(trial.names)):
                kind = Norm(centered, 0.0, len(layout.channels), layout.first, role.offset)
                eps = _eps_of(kind, role, trial, x, outcome.y, own)
                if eps is not None and _agrees(replace(kind, eps=eps), role, trial, x, outcome, own):
                    return _everywhere(replace(kind, eps=eps), role, trial, layout, own, fused)
            break
    raise ImpureError("no norm has its values and gradients" if ran else "does not run on a tensor alone")


def _everywhere(
    kind: Norm, role: _Role, trial: _Trial, layout: _Layout, own: torch.dtype, fused: bool
) -> RecognisedNorm:
    """What was found with one number of dimensions in float64, tried with all numbers and dtypes."""
    ndims, first = set(), kind.eps
    for ndim in range(1, 6):
        x = _probe(layout, ndim, torch.float64)
        outcome = None if x is None else trial.run(x, own, _upstream(x.shape))
        if x is not None and outcome is not None and _agrees(kind, role, trial, x, outcome, own):
            ndims.add(ndim)
    kinds: dict[Dtypes, Norm] = {}
    pairs: Iterable[Dtypes] = _PAIRS if trial.names else ((dtype, None) for dtype in _DTYPES)
    if fused and not kind.centered:  # PyTorch's op warns of two dtypes
        pairs = (pair for pair in pairs if pair[1] in (pair[0], None))
    for dtype, parameters in pairs:
        x = _probe(layout, min(ndims & {3, 4} or ndims), dtype)
        outcome = None if x is None else trial.run(x, parameters, _upstream(x.shape))
        if x is None or outcome is None:
            continue
        for eps in dict.fromkeys((first, torch.finfo(arithmetic(dtype)).eps)):
            if _agrees(replace(kind, eps=eps), role, trial, x, outcome, parameters):
                kind = replace(kind, eps=eps)
                once = _rounds_once(kind, role, trial, x, outcome.y, parameters)
                kinds[dtype, parameters] = replace(kind, remainder=once)
                break
    if not kinds:
        raise ImpureError("no norm has its values and gradients")
    return RecognisedNorm(kinds, frozenset(ndims), role.weight, role.bias, trial.shape, trial.pins)


@functools.cache
def _probe(layout: _Layout, ndim: int, dtype: torch.dtype) -> Tensor | None:
    """Rows of all sizes, some of them far from 0: in 16 bits and float32 as small as tells eps there."""
    shape = layout.shape(ndim, math.prod(layout.channels))
    if shape is None:
        return None
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    rows = Norm(False, 0.0, len(layout.channels), layout.first).rows(x)
    count = math.prod(rows.shape[:-1])
    low, high = (-9.0, 3.0) if dtype is torch.float64 else (-5.0, 2.0)
    scales = torch.logspace(low, high, count, dtype=torch.float64)[torch.randperm(count, generator=generator)]
    means = torch.linspace(-1, 1, count, dtype=torch.float64)
    rows = (rows + means.view(*rows.shape[:-1], 1)) * scales.view(*rows.shape[:-1], 1)
    return Norm(False, 0.0, len(layout.channels), layout.first).restored(rows, x).contiguous().to(dtype)


@functools.lru_cache(maxsize=64)
def _upstream(shape: torch.Size) -> Tensor:
    """A gradient of an output; nobody writes to it."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(13), dtype=torch.float64)


def _eps_of(kind: Norm, role: _Role, trial: _Trial, x: Tensor, y: Tensor, dtype: torch.dtype) -> float | None:
    """The eps with which ``kind`` has the outputs ``y``; None if there is none.

    1 / rstd^2 = mean square + eps, and rstd = x̂ / (x - mean). Rows where eps outweighs the mean square tell it best,
    and of those the largest, since a bias is known more coarsely than a small x̂.
    """
    rows, out = kind.rows(x), kind.rows(y).double()
    given = {name: parameter.double() for name, parameter in trial.substitutes(dtype).items()}
    scale, shift = kind.scale(given.get(role.weight)), kind.shift(given.get(role.bias))
    x_hat = out if shift is None else out - shift
    x_hat = x_hat if scale is None else x_hat / scale
    centred = rows - rows.mean(-1, keepdim=True) if kind.centered else rows
    square = centred.square().mean(-1)
    rstd = (x_hat * centred).mean(-1) / square
    eps = 1 / rstd.square() - square
    telling = (eps.isfinite()) & (square <= eps / 30)
    if not telling.any():
        return None
    index = int(torch.where(telling, square, -1.0).argmax())
    found = float(eps.flatten()[index])
    pinned = [pin.value for pin in trial.pins if isinstance(pin.value, float) and pin.value > 0]
    near = [value for value in pinned if abs(value - found) <= 1e-5 * found]
    return near[0] if near else float(f"{found:.6g}")


def _agrees(kind: Norm, role: _Role, trial: _Trial, x: Tensor, got: _Outcome, dtype: torch.dtype | None) -> bool:
    """Whether values and gradients are the norm's, up to the rounding of the dtypes."""
    leaves = {n: p.double().requires_grad_() for n, p in trial.substitutes(dtype).items()}
    given = x.double().requires_grad_()
    y = kind.reference(given, leaves.get(role.weight), leaves.get(role.bias))
    grad = _upstream(x.shape).to(got.y.dtype).double()
    dx, *by_parameter = torch.autograd.grad((y * grad).sum(), [given, *leaves.values()])
    coarsest = max(torch.finfo(d).eps for d in (x.dtype, got.y.dtype, dtype) if d is not None)
    in_16_bits = coarsest > torch.finfo(torch.float32).eps
    y_rows, dx_rows = (_rows(kind, t) for t in (y.detach(), dx))
    got_y, got_dx = (_rows(kind, t).double() for t in (got.y, got.dx))
    if not got_y.isfinite().all():
        return False
    values = max(_EXACT, _ROUNDINGS * coarsest)
    if not _close(got_y, y_rows, values):
        return False
    gradients = _COARSE if in_16_bits else _GRADIENTS
    told = got_dx.isfinite().all(-1)  # 16 bits do not hold the gradients of the smallest rows
    if x.dtype is torch.float16 or got.dx.dtype is torch.float16:
        told &= (dx_rows.abs().amax(-1) < 1e3) & (dx_rows.abs().amax(-1) > 1e-2)
    if not told.any() or not _close(got_dx[told], dx_rows[told], gradients):
        return False
    pairs = zip(got.by_parameter.values(), by_parameter, strict=True)
    return all(_close(a.double().flatten()[None], b.flatten()[None], gradients) for a, b in pairs)


def _rounds_once(kind: Norm, role: _Role, trial: _Trial, x: Tensor, y: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether a 16-bit output is nearly everywhere the exact one, rounded: then remainder bits tell more of x̂."""
    given = {name: parameter.double() for name, parameter in trial.substitutes(dtype).items()}
    exact = kind.reference(x.double(), given.get(role.weight), given.get(role.bias)).to(y.dtype)
    return y.element_size() == 2 and bool((exact == y).double().mean() > _ONCE)


def _rows(kind: Norm, tensor: Tensor) -> Tensor:
    """As a matrix."""
    rows = kind.rows(tensor)
    return rows.reshape(-1, rows.shape[-1])


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether each row of ``a`` differs from that of ``b`` by so much of its largest element at most."""
    return bool(((a - b).abs().amax(-1) <= tolerance * b.abs().amax(-1)).all())


def norm_of(module: Module) -> RecognisedNorm | None:
    """Which norm a module computes; None for any other module."""
    if module._modules or "forward" in module.__dict__:
        return None
    with contextlib.suppress(ImpureError):
        return recognise_norm(module)
    return None


_OTHER_NORMS = (
    (nn.SyncBatchNorm, "its statistics are those of several devices"),
    (nn.modules.batchnorm._BatchNorm, "it normalises over the batch"),
    (nn.modules.instancenorm._InstanceNorm, "it normalises each channel by itself"),
    (nn.GroupNorm, "it normalises groups of channels"),
    (nn.LocalResponseNorm, "it normalises over neighbouring channels"),
)


def why_no_norm(module: Module) -> str:
    """Why a module that is called a norm is none that we know; empty for one of ours or one with another name."""
    kind = type(module)
    elsewhere = kind.__module__.startswith(("torch.nn.utils.", "optiacts."))  # norms of weights, and our own
    if "norm" not in kind.__name__.lower() or elsewhere or module._modules:
        return ""
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    for other, reason in _OTHER_NORMS:
        if isinstance(module, other):
            return reason
    try:
        recognise_norm(module)
    except ImpureError as error:
        return f"no norm that we know: {error}"
    return ""
