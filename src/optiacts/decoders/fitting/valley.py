"""Derives the polynomials of a curve's valley (decoders/valley.py says what it is).

Interpolants at Chebyshev nodes: on so short an interval the error left by the least degree that serves a dtype is
within a factor of two of the smallest possible one. Where that misses a limit, the polynomial of that smallest error
is taken, in 16 bits of a higher degree too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mpmath import mp
from numpy.polynomial import Chebyshev, Polynomial
from numpy.polynomial.chebyshev import chebvander

from optiacts.curves import Curve
from optiacts.decoders.fitting.lawson import Array, lawson, single
from optiacts.decoders.fitting.quality import Quality, first_within
from optiacts.decoders.valley import Valley, borders

DIGITS = 40
# The degrees of output and slope, and the most that they may miss, in half units in the last place of the dtype.
# float32: that of the CPU kernels' polynomials; PyTorch's own forward is off by 4 to 16 half units there. 16 bits:
# the error is lost in the rounding that follows.
DEGREES = {torch.float32: (8, 8), torch.bfloat16: (5, 4), torch.float16: (6, 5)}
LIMITS = {torch.float32: (8.0, 2.0), torch.bfloat16: (0.05, 0.1), torch.float16: (0.05, 0.1)}
SAMPLES = 400  # for the polynomial of least error
HIGHER = 2  # degrees, at most


class Problem:
    """One curve around its minimum."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        self._centre = single(curve.x_min)

    def derive(self) -> dict[str, Any]:
        return {_name(dtype): dataclasses.asdict(self._derive(dtype)) for dtype in DEGREES}

    def judge(self, data: Mapping[str, Any]) -> tuple[Quality, ...]:
        found = []
        for dtype in DEGREES:
            around = Valley(**data[_name(dtype)])
            found += [self._judge(dtype, 0, around.output), self._judge(dtype, 1, around.slope)]
        return tuple(found)

    def advice(self) -> str:
        return f"Raise DEGREES in {__name__}: the curve bends more around its minimum than the others"

    def _derive(self, dtype: torch.dtype) -> Valley:
        return Valley(self._centre, self._fit(dtype, 0), self._fit(dtype, 1))

    def _fit(self, dtype: torch.dtype, which: int) -> tuple[float, ...]:
        return first_within(self._attempts(dtype, which), lambda fitted: (self._judge(dtype, which, fitted),))

    def _judge(self, dtype: torch.dtype, which: int, coefficients: Sequence[float]) -> Quality:
        """Of the output (0) or the slope (1)."""
        gate = np.linspace(*borders(self._curve, dtype), 10_000).astype(np.float32).astype(np.float64)
        point, half = torch.from_numpy(gate), torch.finfo(dtype).eps / 2
        if which == 0:
            what, exact = "act(gate)", self._curve.function(point, torch).numpy()
            unit = half * np.exp2(np.floor(np.log2(np.abs(exact))))
        else:
            what, exact, unit = "f'(gate)", self._curve.derivative(point, torch).numpy(), half
        missed = np.abs(_in_float32(gate, self._centre, coefficients) - exact) / unit
        return Quality(f"{_name(dtype)}: {what} in half units", float(missed.max()), LIMITS[dtype][which])

    def _attempts(self, dtype: torch.dtype, which: int) -> Iterator[tuple[float, ...]]:
        function, degree = (self._curve.function, self._curve.derivative)[which], DEGREES[dtype][which]
        low, high = (border - self._centre for border in borders(self._curve, torch.float64))
        with mp.workdps(DIGITS):
            of_t = np.vectorize(lambda t: float(function(mp.mpf(t) + self._centre, mp)))
            yield _coefficients(Chebyshev.interpolate(of_t, degree, domain=[low, high]))
            nodes = -np.cos(np.linspace(0, np.pi, SAMPLES))
            wanted = of_t((low + high) / 2 + (high - low) / 2 * nodes)
        for higher in range(1 if dtype is torch.float32 else 1 + HIGHER):
            _, best = lawson(
                chebvander(nodes, degree + higher),
                wanted,
                np.ones_like(wanted),
                lambda fitted: float(np.abs(fitted - wanted).max()),
            )
            yield _coefficients(Chebyshev(best, domain=[low, high]))


def _coefficients(fitted: Chebyshev) -> tuple[float, ...]:
    """Of the powers of t, in float32."""
    powers = fitted.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1])
    return tuple(single(c) for c in powers.coef)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_float32(gate: Array, centre: float, coefficients: Sequence[float]) -> Array:
    """The polynomial as a kernel evaluates it."""
    t = (gate - centre).astype(np.float32)
    value = np.full_like(t, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * t + np.float32(coefficient)
    return value.astype(np.float64)
