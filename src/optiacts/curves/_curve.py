"""What a curve is: the mathematics of one activation, the names it goes by, and the kind of decoder that it has."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from optiacts._torch import once

# A formula takes the point and a namespace with exp, erfc, tanh and log1p: `torch` for tensors,
# `mpmath.mp` for fitting, `math` for numbers. One text therefore defines the mathematics everywhere.
Formula = Callable[[Any, Any], Any]


class CurveError(ValueError):
    """No curve of that name, or a curve that is not what it is said to be."""


@dataclass(frozen=True)
class Unimodal:
    """The decoder of a curve that falls from 0 to its only minimum, then rises to infinity like x.

    One side bit tells the branch. Generated coefficients say how f' is read: see ``optiacts.decoders``.

    Args:
        tail: c1 and c2 of how f' tends to 1: 1 - f' falls like exp(-(c1 y + c2 y^2)).
        fitted: the coefficients, for a curve that is registered at run time: ``decoders.fitting.fit`` makes
            them. Those of the curves in this package lie in files.
        scaled: (name, k) of a curve f(x) = g(k x) / k, g being the curve called so, whose coefficients serve.
        ends: where the curve becomes constant, far right, if it does.
    """

    tail: tuple[float, float]
    fitted: Mapping[str, Any] | None = None
    scaled: tuple[str, float] | None = None
    ends: float | None = None
    side_bits: ClassVar[int] = 1


@dataclass(frozen=True)
class Regions:
    """Where the branches of a curve start and end, as outputs: (right, left). See decoders/pieces.py.

    Args:
        start: the minimum, or a limit, or where the slope jumps.
        sign: 1 where outputs rise from there, -1 where they fall.
        end: the limit at the other side, or where the slope jumps next and stays; an infinity if there is none.
        split: the largest output of the left branch of a curve without side bits.
    """

    start: tuple[float, float] = (0.0, 0.0)
    sign: tuple[float, float] = (1.0, 1.0)
    end: tuple[float, float] = (math.inf, math.inf)
    split: float = -math.inf


@dataclass(frozen=True)
class ClosedForm:
    """The decoder of a curve whose slope and input are plain expressions in (output, branch).

    Args:
        slope: f' from output and branch (bool); float64 or float32 in, any dtype out. Without side bits "left" are
            outputs of 0; a 0 that is not left is a factor of a product which has underflowed.
        inverse: x from output and branch; float64. Anything where f' is 0.
        left: the branch of an input (bool); None: left of the minimum, which a curve with a side bit has.
        side_bits: 1 if the branch is kept.
        zero_is_flat: whether the slope is 0 wherever the output is 0 on the left.
        backward: PyTorch's own ``grad * f'(x)`` from ``grad`` and the output, or the same in few passes over memory.
        scale_free: whether ``backward`` gives the same from any positive multiple of the output.
        survives_dropout: whether what a dropout drops can be taken for an output of 0, and the slope does not jump
            where the output that a dropout has multiplied is divided again. Only where ``zero_is_flat``.
        regions: what kernels for float32 need, to read the slope in pieces.
        triton: ``slope`` for GPUs, an expression in the float32 tile ``y`` and in ``left``; ``most`` is the largest
            number of the output's dtype. See backends/triton/decode.py. Only without side bits.
        searched: whether ``slope`` is found by a search, too slow for float32 outputs: they are read in pieces.
    """

    slope: Callable[[Tensor, Tensor], Tensor]
    inverse: Callable[[Tensor, Tensor], Tensor]
    left: Callable[[Tensor], Tensor] | None = None
    side_bits: int = 0
    zero_is_flat: bool = False
    backward: Callable[[Tensor, Tensor], Tensor] | None = None
    scale_free: bool = False
    survives_dropout: bool = False
    regions: Regions | None = None
    triton: str | None = None
    searched: bool = False


@dataclass(frozen=True)
class LeftOfZero:
    """A curve left of 0: depth * (exp(slope / depth * x) - 1), or slope * x for a ``depth`` of infinity."""

    slope: float
    depth: float = math.inf


@dataclass(frozen=True)
class Family:
    """Curves that differ in numbers: ``make`` takes them by name and returns one, or raises ``CurveError``.

    Args:
        make: the values that its parameters may have are those that the output tells the slope for.
        functions: functions of PyTorch, by dotted name, whose parameters besides the input are called as ``make``'s.
        modules: the classes with these parameters, for documentation.
        ops: the aten ops.
    """

    make: Callable[..., Curve]
    functions: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spelling:
    """One way to call a curve: the dotted name of a class or function, and the arguments that it must have."""

    path: str
    where: Mapping[str, Any]


def spelled(path: str, **where: Any) -> Spelling:
    """``Spelling(path, where)``."""
    return Spelling(path, where)


@dataclass(frozen=True, eq=False)
class Curve:
    """One activation.

    Args:
        name: its canonical name: the key of the registry, and what ops carry.
        forward: PyTorch's own op, or the expression that people evaluate: ours is this one, to the bit.
        forward_: the same in place.
        function, derivative, second_derivative: the mathematics.
        decoder: how f' is read from the output; ``optiacts.decoders`` does it.
        forward_out: ``forward_out(x, y)`` is the same forward into ``y``, of the layout of ``x``; it returns ``y``.
        base: a variant has the mathematics, and so the coefficients, of the curve called so, but its own forward.
        keeps_output: PyTorch's own op keeps its output already, so that there is nothing to save but in a gated
            product.
        inplace_keeps_output: the same of PyTorch's op in place.
        gates: whether its output tells enough for a gated product with it.
        worth_gating: whether conversion looks for such products; not where PyTorch holds no more for them.
        holds: how many tensors of its size PyTorch holds for it; None: one if it is one op, else several.
        kinks: where its slope jumps, besides 0.
        minimum: where its minimum lies, if that is known already.
        tells_input: whether the output and the side bit tell the input everywhere, to a few roundings, so that a norm
            before the activation can go by them (docs/chains.md). A forward that cancels or falls off fast far left
            does not.
        left_of_zero: of a curve that is x where x > 0, and tells its input, what it is elsewhere.
        modules, functions: the classes and functions that compute it.
        ops: the aten ops, such as ``"aten::gelu"``.
        triton: the forward as PyTorch's GPU kernel evaluates it, an expression in the float32 tile ``z``: see
            backends/triton/values.py. Without one, a GPU runs PyTorch's own op.
        triton_input: the input of a curve in closed form, an expression in the float32 tile ``y`` and ``lowest``, the
            logarithm of what is left of the smallest share that is told. For norms as well.
        triton_slope: f' from the input, an expression in the float32 tiles ``z``, ``y``, the output, and
            ``u = exp(z)``; z and y are 20 at most, from where on f' is 1. For norms before the activation on a GPU.
        cuda: the forward in CUDA C++, as PyTorch's source has it, for benchmarks/gpu_forward_ptx.py.
        native: the kernel of csrc/chains.cpp that is the forward on a CPU, to PyTorch's bits.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    forward_: Callable[[Tensor], Tensor]
    function: Formula
    derivative: Formula
    second_derivative: Formula
    decoder: Unimodal | ClosedForm
    forward_out: Callable[[Tensor, Tensor], Tensor] | None = None
    base: str | None = None
    keeps_output: bool = False
    inplace_keeps_output: bool = False
    gates: bool = True
    worth_gating: bool = True
    holds: int | None = None
    kinks: tuple[float, ...] = ()
    minimum: float | None = None
    tells_input: bool = False
    left_of_zero: LeftOfZero | None = None
    modules: tuple[Spelling, ...] = ()
    functions: tuple[Spelling, ...] = ()
    ops: tuple[str, ...] = ()
    triton: str | None = None
    triton_input: str | None = None
    triton_slope: str | None = None
    cuda: str | None = None
    native: str | None = None

    @functools.cached_property
    def x_min(self) -> float:
        """Where the minimum of a unimodal curve lies: the border between the left and the right branch."""
        if self.minimum is not None:
            return self.minimum
        low, high = -FURTHEST_MINIMUM / self.scale, 0.0
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if self.derivative(middle, math) < 0 else (low, middle)
        return high

    @functools.cached_property
    def y_min(self) -> float:
        """The value at the minimum."""
        return float(self.function(self.x_min, math))

    @property
    def scale(self) -> float:
        """k of a curve f(x) = g(k x) / k, else 1."""
        scaled = self.decoder.scaled if isinstance(self.decoder, Unimodal) else None
        return 1.0 if scaled is None else scaled[1]

    @property
    def survives_dropout(self) -> bool:
        """Whether what a dropout drops can be taken for an element infinitely far left."""
        return self.decoder.ends is None if isinstance(self.decoder, Unimodal) else self.decoder.survives_dropout

    @property
    def zero_is_flat(self) -> bool:
        """Whether the slope is 0 wherever the output is 0 on the left."""
        return isinstance(self.decoder, Unimodal) or self.decoder.zero_is_flat

    @property
    def held_once(self) -> bool:
        """Whether PyTorch holds one tensor for it: where nobody else keeps its output, there is nothing to gain."""
        return bool(self.ops) if self.holds is None else self.holds == 1

    def threshold(self, dtype: torch.dtype) -> float:
        """``x_min`` rounded to ``dtype``: the side bit of an element is ``x < threshold``."""
        return rounded(self.x_min, dtype)

    def ceiling(self, dtype: torch.dtype) -> float:
        """The value of a curve that becomes constant, from there on, in ``dtype``."""
        assert isinstance(self.decoder, Unimodal) and self.decoder.ends is not None
        return _value(self.forward, self.decoder.ends, dtype)

    def left(self, x: Tensor) -> Tensor:
        """Which elements lie on the left branch: their side bits (bool). Without side bits: where the output is 0."""
        if self.decoder.side_bits == 0:
            return self.forward(x) == 0
        if isinstance(self.decoder, ClosedForm) and self.decoder.left is not None:
            return self.decoder.left(x)
        return x < self.threshold(x.dtype)


FURTHEST_MINIMUM = 2.0  # the minimum of a unimodal curve lies less far left, but for its scale


@once
def rounded(value: float, dtype: torch.dtype) -> float:
    """``value`` rounded to ``dtype``."""
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


@once
def _value(forward: Callable[[Tensor], Tensor], x: float, dtype: torch.dtype) -> float:
    """``forward`` of one number."""
    return float(forward(torch.tensor(x, dtype=dtype)))
