"""Derives the polynomials of a curve's valley (decoders/valley.py says what it is).

Interpolants at Chebyshev nodes: on so short an interval the error left by the least degree that serves a dtype is
within a factor of two of the smallest possible one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mpmath import mp
from numpy.polynomial import Chebyshev, Polynomial

from optiacts.curves import Curve
from optiacts.curves._curve import Formula
from optiacts.decoders.fitting.lawson import Array, single
from optiacts.decoders.fitting.quality import Quality
from optiacts.decoders.valley import Valley, borders

DIGITS = 40
# The degrees of output and slope, and the most that they may miss, in half units in the last place of the dtype.
# float32: that of the CPU kernels' polynomials; PyTorch's own forward is off by 4 to 16 half units there. 16 bits:
# the error is lost in the rounding that follows.
DEGREES = {torch.float32: (8, 8), torch.bfloat16: (5, 4), torch.float16: (6, 5)}
LIMITS = {torch.float32: (8.0, 2.0), torch.bfloat16: (0.05, 0.1), torch.float16: (0.05, 0.1)}


class Problem:
    """One curve around its minimum."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        self._centre = single(curve.x_min)

    def derive(self) -> dict[str, Any]:
        return {str(dtype).removeprefix("torch."): dataclasses.asdict(self._derive(dtype)) for dtype in DEGREES}

    def judge(self, data: Mapping[str, Any]) -> tuple[Quality, ...]:
        found = []
        for dtype, limits in LIMITS.items():
            name = str(dtype).removeprefix("torch.")
            around = Valley(**data[name])
            gate = np.linspace(*borders(self._curve, dtype), 10_000).astype(np.float32).astype(np.float64)
            half = torch.finfo(dtype).eps / 2
            exact = self._curve.function(torch.from_numpy(gate), torch).numpy()
            slope = self._curve.derivative(torch.from_numpy(gate), torch).numpy()
            half_ulp = half * np.exp2(np.floor(np.log2(np.abs(exact))))
            for what, coefficients, wanted, unit, limit in (
                ("act(gate)", around.output, exact, half_ulp, limits[0]),
                ("f'(gate)", around.slope, slope, half, limits[1]),
            ):
                missed = np.abs(_in_float32(gate, around.centre, coefficients) - wanted) / unit
                found.append(Quality(f"{name}: {what} in half units", float(missed.max()), limit))
        return tuple(found)

    def advice(self) -> str:
        return f"Raise DEGREES in {__name__}: the curve bends more around its minimum than the others"

    def _derive(self, dtype: torch.dtype) -> Valley:
        output, slope = DEGREES[dtype]
        functions = (self._curve.function, output), (self._curve.derivative, slope)
        return Valley(self._centre, *(self._polynomial(function, degree) for function, degree in functions))

    def _polynomial(self, function: Formula, degree: int) -> tuple[float, ...]:
        low, high = (border - self._centre for border in borders(self._curve, torch.float64))
        with mp.workdps(DIGITS):
            of_t = np.vectorize(lambda t: float(function(mp.mpf(t) + self._centre, mp)))
            fitted = Chebyshev.interpolate(of_t, degree, domain=[low, high])
        powers = fitted.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1])
        return tuple(single(c) for c in powers.coef)


def _in_float32(gate: Array, centre: float, coefficients: Sequence[float]) -> Array:
    """The polynomial as a kernel evaluates it."""
    t = (gate - centre).astype(np.float32)
    value = np.full_like(t, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * t + np.float32(coefficient)
    return value.astype(np.float64)
