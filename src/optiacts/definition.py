"""Activations of one's own: from a Python function to one that keeps its output. docs/your_own.md shows how."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from optiacts import accuracy, curves, functional, functional_gated
from optiacts._torch import undisturbed
from optiacts.conversion.purity import ImpureError
from optiacts.conversion.recognition import known_curve
from optiacts.conversion.steps import Replay, recorded
from optiacts.curves import ClosedForm, Curve, CurveError, Regions

_DENSE = 12.0  # the interval in which a function is looked at closely
_WIDEST = 88.0  # sinh of it is the largest float32: no input lies beyond
_STEPS = 64  # of a bisection
_FLAT = 1e-10  # slopes below it are 0
_SETTLED = 1e-9
_LIMIT = 2e-6  # the contract in float32


@dataclass(frozen=True)
class Quality:
    """How exact f' is that the output tells: |error|, worst and RMS for x ~ N(0, 1), in 16 bits and in float32.

    In 16 bits the decode is the best that there is, so the errors are those that no decode can avoid.
    """

    bfloat16: tuple[float, float]
    float16: tuple[float, float]
    float32: float

    def __str__(self) -> str:
        return (
            f"error of f', worst and RMS: bfloat16 {self.bfloat16[0]:.1e} and {self.bfloat16[1]:.1e}, "
            f"float16 {self.float16[0]:.1e} and {self.float16[1]:.1e}; worst in float32 {self.float32:.1e}"
        )


@dataclass(frozen=True)
class Definition:
    """An activation that was defined: call it as a function, or make modules of it.

    ``name`` is that of its curve, for ``optiacts.activation``, ``optiacts.gated`` and what else takes one. It carries
    a hash of what the function computes. ``side_bits`` are the bits per element that are saved besides the output.
    """

    name: str
    side_bits: int
    quality: Quality

    def __call__(self, input: Tensor, inplace: bool = False) -> Tensor:
        """The function's value. Saved for backward: it, and ``side_bits`` per element."""
        return functional.activation(input, self.name, inplace)

    def gated(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """``f(gate) * up``: see ``optiacts.gated``."""
        return functional_gated.gated(gate, up, self.name)

    def module(self, inplace: bool = False) -> Module:
        """A module without parameters that computes it."""
        return Defined(self.name, inplace)

    def __str__(self) -> str:
        bits = "its output and one bit per element" if self.side_bits else "its output alone"
        return f"{self.name}: keeps {bits}; {self.quality}"


class Defined(Module):
    """The module of an activation that was defined: see ``optiacts.define``."""

    def __init__(self, name: str, inplace: bool = False) -> None:
        super().__init__()
        self.name, self.inplace = name, inplace

    def forward(self, input: Tensor) -> Tensor:
        return functional.activation(input, self.name, self.inplace)

    def extra_repr(self) -> str:
        return self.name + (", inplace=True" if self.inplace else "")


def define(f: Callable[[Tensor], Tensor]) -> Definition:
    """Makes an activation that keeps its output of a function that PyTorch can differentiate.

    Args:
        f: a Python function of one tensor that is made of element-wise operations of torch, or a module without
            parameters. It is recorded once: what it reads from elsewhere, such as a constant, stays as it is now. It
            may fall to one minimum and rise again, or only rise, or only fall.

    Returns:
        A function, which makes modules and gated products, too. Its results are those of ``f``, bit for bit, in every
        dtype. It works compiled, and ``optiacts.convert`` finds ``f`` in models. Where ``f`` is one of the curves of
        this package it is that one.

    Raises:
        CurveError: a ``ValueError`` that says what is in the way: more than one minimum, a maximum, a jump of f or of
            its slope, operations that are not element-wise, random ones, something learnt.
    """
    label = getattr(f, "__name__", "") or type(f).__name__
    label = label if label.isidentifier() else "activation"
    if isinstance(f, Module) and next(f.parameters(), None) is not None:
        raise CurveError(f"{label} has parameters; define takes functions of their input alone")
    with _one_thread():
        return _define(label, f)


def _define(label: str, f: Callable[[Tensor], Tensor]) -> Definition:
    _check_pointwise(label, f)
    try:
        known = known_curve(f)
        steps = None if known is not None else recorded(f)
    except ImpureError as error:
        raise CurveError(f"{label}: {error}") from None
    if known is None:
        assert steps is not None
        name = f"{label}_{hashlib.sha256(repr(steps).encode()).hexdigest()[:12]}"
        known = name if name in curves.GATES else curves.register(_curve(name, Replay(steps))).name
    return _defined(known)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small operations: on a busy machine the threads of each would wait for one another for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _defined(name: str) -> Definition:
    curve = curves.get(name)
    return Definition(name, curve.decoder.side_bits, _quality(curve))


@undisturbed
def _quality(curve: Curve) -> Quality:
    sixteen = [accuracy.exhaustive_errors(curve.name, dtype) for dtype in (torch.bfloat16, torch.float16)]
    single = accuracy.float32_errors(curve, torch.linspace(-_DENSE, _DENSE, 20_001))
    if single.decode_far > _LIMIT * max(1.0, _steepest(curve)):
        raise CurveError(
            f"{curve.name}: its slope bends too sharply to be read from the output: the error in float32 is "
            f"{single.decode_far:.1e}. Does the slope jump somewhere?"
        )
    return Quality((sixteen[0].worst, sixteen[0].rms), (sixteen[1].worst, sixteen[1].rms), single.anywhere)


def _steepest(curve: Curve) -> float:
    return float(curve.derivative(torch.linspace(-_DENSE, _DENSE, 1001, dtype=torch.float64), torch).abs().max())


def _check_pointwise(label: str, f: Callable[[Tensor], Tensor]) -> None:
    """Raises unless every element of the result depends on the element at its place, and on nothing else."""
    x = torch.linspace(-3, 3, 24, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        y = f(x)
        if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
            found = f"{tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise CurveError(f"{label} must return a tensor of the shape and dtype of its input; got {found}")
        if y.requires_grad:
            raise CurveError(
                f"{label} depends on something that is learnt; define takes functions of their input alone"
            )
        if not torch.equal(x, torch.linspace(-3, 3, 24, dtype=torch.float64)):
            raise CurveError(f"{label} overwrites its input; let it return a new tensor")
        parts = torch.cat([f(x[:5].clone()), f(x[5:].flip(0).clone()).flip(0)])
        square = f(x.reshape(4, 6).clone()).flatten()
        if not (
            torch.allclose(parts, y, rtol=1e-12, atol=0, equal_nan=True)
            and torch.allclose(square, y, rtol=1e-12, atol=0, equal_nan=True)
        ):
            raise CurveError(f"{label} is not point-wise: an element of its result depends on others, or on chance")


def _curve(name: str, forward: Callable[[Tensor], Tensor]) -> Curve:
    """The curve of a forward whose mathematics is what autograd says."""
    slopes = _Slopes(forward)
    shape = _Shape(name, slopes)
    decoder = ClosedForm(
        slope=shape.slope,
        inverse=shape.inverse,
        left=None if shape.x_min is None else lambda x: x < _rounded(shape.x_min, x.dtype),
        side_bits=int(shape.x_min is not None),
        regions=shape.regions(),
        searched=True,
    )
    curve = Curve(
        name=name,
        forward=forward,
        forward_=lambda x: x.copy_(forward(x)),
        function=lambda x, m: forward(_tensor(x)),
        derivative=lambda x, m: slopes.first(_tensor(x)),
        second_derivative=lambda x, m: slopes.second(_tensor(x)),
        decoder=decoder,
        minimum=shape.x_min,
        holds=2,
    )
    return dataclasses.replace(curve, gates=_gates(curve, shape))


def _gates(curve: Curve, shape: _Shape) -> bool:
    """Whether the minimum, if there is one, lies as the slot of a gated product asks: see decoders/valley.py."""
    if shape.x_min is None:
        return True
    y_min = float(shape.value(shape.x_min))
    return (y_min == 0 and shape.x_min == 0) or (y_min < 0 and shape.x_min < 1.5 * y_min)


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64)


def _rounded(value: float | None, dtype: torch.dtype) -> float:
    assert value is not None
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


class _Slopes:
    """The first two derivatives by autograd, in float64; far out, where they would overflow, those at the border."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.forward = forward
        far = torch.sinh(torch.linspace(3, _WIDEST, 400, dtype=torch.float64))
        self._low, self._high = -math.inf, math.inf
        self._low, self._high = -self._border(-far), self._border(far)

    def _border(self, far: Tensor) -> float:
        """How far out the derivatives are numbers."""
        fine = (self.first(far).isfinite() & self.second(far).isfinite()).cumprod(0).bool()
        return float(far.abs()[fine].max()) if bool(fine[0]) and not bool(fine.all()) else math.inf

    def first(self, x: Tensor) -> Tensor:
        return self._derivative(x, 1)

    def second(self, x: Tensor) -> Tensor:
        return self._derivative(x, 2)

    def _derivative(self, x: Tensor, order: int) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().double().clamp(self._low, self._high).clone().requires_grad_()
            value = self.forward(point)
            for _ in range(order):
                if not value.requires_grad:
                    return torch.zeros_like(x, dtype=torch.float64)
                (found,) = torch.autograd.grad(value.sum(), point, create_graph=True, allow_unused=True)
                if found is None:
                    return torch.zeros_like(x, dtype=torch.float64)
                value = found
            return value.detach()


class _Shape:
    """Where a function falls and rises, and the way back from its values."""

    def __init__(self, name: str, slopes: _Slopes) -> None:
        self.name, self._slopes = name, slopes
        x = torch.linspace(-_DENSE, _DENSE, 24_001, dtype=torch.float64)
        far = torch.sinh(torch.linspace(math.asinh(_DENSE), _WIDEST, 1000, dtype=torch.float64))
        x = torch.cat([-far.flip(0), x, far])
        y, slope = self.value(x), slopes.first(x)
        self._check_smooth(x, y, slope)
        steep = slope.abs() > _FLAT
        if not bool(steep.any()):
            raise CurveError(f"{name} is constant")
        rising, where = slope[steep] > 0, x[steep]
        turns = where[1:][rising[1:] != rising[:-1]].tolist()
        if len(turns) > 1:
            raise CurveError(
                f"{name} turns {len(turns)} times, near x = {', '.join(f'{turn:.3g}' for turn in turns[:4])}: an "
                "output and one bit do not tell where it was. It may have one minimum, or none"
            )
        if turns and bool(rising[0]):
            raise CurveError(f"{name} has a maximum near x = {turns[0]:.3g}; define takes functions with a minimum")
        self.falls = not bool(rising[0]) and not turns
        self.x_min = self._minimum(turns[0]) if turns else None
        self._ends = self._limit(-1), self._limit(1)
        middle = x[x.abs() < _DENSE / 2]
        flat = slopes.first(middle).abs()
        self._middle = float(middle[flat.argmin()]) if bool(flat.min() < 0.01 * flat.max()) else 0.0

    def value(self, x: Tensor | float) -> Tensor:
        with torch.no_grad():
            return self._slopes.forward(_tensor(x))

    def _check_smooth(self, x: Tensor, y: Tensor, slope: Tensor) -> None:
        near = x.abs() < _DENSE
        if not bool((y.isfinite() & slope.isfinite())[near].all()):
            raise CurveError(f"{self.name} or its slope is no number somewhere between {-_DENSE:g} and {_DENSE:g}")
        x, y, slope = x[near], y[near], slope[near]
        step = x[1:] - x[:-1]
        rates = (y[1:] - y[:-1]) / step
        expected = (slope[1:] + slope[:-1]) / 2
        bend = (slope[1:] - slope[:-1]).abs()
        odd = (rates - expected).abs() > 0.51 * bend + 1e-5 * (1 + expected.abs())
        if bool(odd.any()):
            at, off = x[1:][odd][0].item(), (rates - expected).abs()[odd][0].item()
            what = "jumps" if off > 0.01 / step[0].item() else "has another slope than its autograd says"
            raise CurveError(f"{self.name} {what} near x = {at:.3g}")
        kinks = bend > 0.02 * (1 + slope.abs().max())
        if bool(kinks.any()):
            raise CurveError(
                f"the slope of {self.name} jumps near x = {x[1:][kinks][0].item():.3g}; it must be smooth"
            )

    def _minimum(self, near: float) -> float:
        low, high = near - 0.1 * (1 + abs(near)), near + 0.1 * (1 + abs(near))
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if float(self._slopes.first(_tensor(middle))) < 0 else (low, middle)
        return 0.0 if abs(high) < 1e-12 else high

    def _limit(self, side: int) -> float:
        """The value far left (-1) or right (1); an infinity if there is none."""
        far = side * torch.tensor([1e5, 1e7, 1e9], dtype=torch.float64)
        y = self.value(far)
        settled = bool(((y - y[-1]).abs() <= _SETTLED * (1 + y[-1].abs())).all())
        return float(y[-1]) if settled else math.copysign(math.inf, float(y[-1]))

    def regions(self) -> Regions:
        """Where branches start and end, as outputs."""
        left, right = self._ends
        if self.x_min is not None:
            y_min = float(self.value(self.x_min))
            return Regions(start=(y_min, y_min), end=(right, left))
        low, high = sorted((left, right))
        if math.isfinite(low):
            return Regions(start=(low, 0.0), end=(high, math.inf))
        if math.isfinite(high):
            return Regions(start=(high, 0.0), sign=(-1.0, 1.0), end=(-math.inf, math.inf))
        y = float(self.value(self._middle))
        return Regions(start=(y, y), sign=(1.0, -1.0), end=(math.inf, -math.inf), split=y)

    def inverse(self, y: Tensor, left: Tensor) -> Tensor:
        """The x of an output on its branch: bisection of asinh(x)."""
        y = y.double()
        widest = torch.full_like(y, _WIDEST)
        if self.x_min is None:
            low, high, falls = -widest, widest, torch.full_like(y, self.falls, dtype=torch.bool)
        else:
            border = torch.full_like(y, math.asinh(self.x_min))
            low, high, falls = torch.where(left, -widest, border), torch.where(left, border, widest), left
        for _ in range(_STEPS):
            middle = (low + high) / 2
            beyond = (self.value(torch.sinh(middle)) > y) != falls
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        return torch.sinh((low + high) / 2) + 0 * torch.where(y.isnan(), y, 0.0)

    def slope(self, y: Tensor, left: Tensor) -> Tensor:
        return self._slopes.first(self.inverse(y, left)) + 0 * torch.where(y.isnan(), y.double(), 0.0)
