"""Derives the float32 decoder (decoders/polynomials.py says what it is).

The minimum and the derivative as a function of the unfolded variable v are computed with 40 digits. Each branch is
sampled at Chebyshev nodes, which gives an interpolant exact to float64; the pieces are then polynomials with the
least possible largest error of f', the right branch's breaks placed where the three pieces' errors are about equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mpmath import mp
from numpy.polynomial import Chebyshev
from numpy.polynomial.chebyshev import cheb2poly, chebvander
from numpy.polynomial.polynomial import polyval

from optiacts.curves import Curve
from optiacts.curves._check import FAR, SETTLED
from optiacts.decoders.fitting.lawson import Array, lawson, single
from optiacts.decoders.fitting.quality import Quality, first_within
from optiacts.decoders.inverse import inverse
from optiacts.decoders.polynomials import DEGREE, PIECES, Coefficients
from optiacts.decoders.scaling import BIAS, LEAST

DIGITS = 40
BRANCH_NODES = 160
SAMPLES = 400  # of a piece
LIMIT = 1.2e-6  # the contract's 2e-6 less float32's own rounding
# Where f' is so near to 0 or 1, the pieces end. A shorter piece has the smaller error: the later ones are taken only
# where the earlier miss the limit.
ENDS = (SETTLED, 1e-7, 3e-7)


class Problem:
    """One curve, known to 40 digits."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        with mp.workdps(DIGITS):
            x_min = mp.mpf(curve.x_min)
            for _ in range(4):
                x_min -= curve.derivative(x_min, mp) / curve.second_derivative(x_min, mp)
            self._y_min = curve.function(x_min, mp)
        self._limits = self._where_settled(SETTLED)
        self._left = self._branch(True, self._limits[0])
        self._right = self._branch(False, self._limits[1])

    def derive(self) -> dict[str, Any]:
        return first_within((self._derive(self._where_settled(end)) for end in ENDS), self.judge)

    def _where_settled(self, end: float) -> tuple[float, float]:
        """v on the left where f' is within ``end`` of 0, and on the right where it is within ``end`` of 1."""
        curve, y_min = self._curve, self._y_min
        with mp.workdps(DIGITS):
            far = mp.mpf(FAR)
            left = _bisect(lambda x: -curve.derivative(x, mp) < end, -far, mp.mpf(curve.x_min) - 1)
            right = _bisect(lambda x: abs(curve.derivative(x, mp) - 1) > end, mp.mpf(3), far)
            return (
                single(round(float(mp.sqrt(-mp.log(curve.function(left, mp) / y_min))), 3)),
                single(round(float(mp.sqrt(curve.function(right, mp) - y_min)), 3)),
            )

    def _derive(self, limits: tuple[float, float]) -> dict[str, Any]:
        breaks = _equal_breaks(self._right, limits[1])
        pieces = [
            _fit(self._left, 0.0, limits[0], self._weight(0)),
            _fit(self._right, 0.0, breaks[0], self._weight(1)),
            _fit(self._right, breaks[0], breaks[1], self._weight(2)),
            _fit(self._right, breaks[1], limits[1], self._weight(3)),
        ]
        y_high = single(self._y_min)
        half_ulp = float(np.spacing(np.float32(abs(y_high)))) / 2
        domains = [polynomial.domain for polynomial, _ in pieces]
        columns = [[single(c) for c in cheb2poly(polynomial.coef)] for polynomial, _ in pieces]
        return dataclasses.asdict(
            Coefficients(
                y_min_high=y_high,
                y_min_low=single(float(self._y_min - mp.mpf(y_high)) + BIAS * half_ulp),
                least=single(LEAST * half_ulp),
                limits=limits,
                breaks=(single(breaks[0]), single(breaks[1])),
                scale=tuple(single(2 / (high - low)) for low, high in domains),
                shift=tuple(single(-(low + high) / (high - low)) for low, high in domains),
                polynomials=tuple(zip(*columns, strict=True)),
                errors=tuple(float(f"{error:.2g}") for _, error in pieces),
            )
        )

    def judge(self, data: Mapping[str, Any]) -> tuple[Quality, ...]:
        """The largest error of f', with the coefficients as they are rounded."""
        c = Coefficients(**data)
        y_min = c.y_min_high + c.y_min_low
        wrong_y = abs(y_min - float(self._y_min)) / abs(float(self._y_min)) > 1e-7
        starts, ends = (0.0, 0.0, *c.breaks), (self._limits[0], *c.breaks, self._limits[1])
        worst = np.inf if wrong_y else 0.0
        for piece in range(PIECES):
            target = self._right if piece else self._left
            v = np.linspace(starts[piece], ends[piece], 2000)
            held = v.clip(max=c.limits[min(piece, 1)])
            p = polyval(held * c.scale[piece] + c.shift[piece], [row[piece] for row in c.polynomials])
            worst = max(worst, float((self._weight(piece)(v) * np.abs(p - target(v))).max()))
        return (Quality("float32: error of f'", worst, LIMIT),)

    def advice(self) -> str:
        return (
            f"Its shape needs more than {PIECES} pieces of degree {DEGREE}. Where f' is an expression in the output, "
            "use ClosedForm; else raise PIECES or DEGREE in decoders/polynomials.py, for all curves"
        )

    def _branch(self, left: bool, limit: float) -> Chebyshev:
        """p(v) on one branch, v from 0 to ``limit``, as an interpolant exact to float64."""

        def p(v: Array) -> Array:
            y = float(self._y_min) * np.exp(-v * v) if left else float(self._y_min) + v * v
            near = inverse(self._curve, torch.from_numpy(y), torch.full(y.shape, left))
            return np.array([self._slope(value, start, left) for value, start in zip(v, near.tolist(), strict=True)])

        with mp.workdps(DIGITS):
            return Chebyshev.interpolate(p, BRANCH_NODES, domain=[0, limit])

    def _slope(self, v: float, near: float, left: bool) -> float:
        """p at one point, from an x that is right to float64, by Newton's method."""
        curve, v, x = self._curve, mp.mpf(v), mp.mpf(near)
        y = self._y_min * mp.exp(-v * v) if left else self._y_min + v * v
        for _ in range(8):
            step = (curve.function(x, mp) - y) / curve.derivative(x, mp)
            x -= step
            if abs(step) < mp.mpf(10) ** -25:
                break
        slope = curve.derivative(x, mp)
        return float(slope / y if left else slope)

    def _weight(self, piece: int) -> Callable[[Array], Array]:
        """What an error of p means for f'."""
        return np.ones_like if piece else lambda v: -float(self._y_min) * np.exp(-v * v)


def _bisect(holds: Callable[[Any], bool], low: Any, high: Any, steps: int = 30) -> Any:
    """The border between where ``holds`` is true (at ``low``) and where it is not (at ``high``)."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _fit(target: Chebyshev, low: float, high: float, weight: Callable[[Array], Array]) -> tuple[Chebyshev, float]:
    """The polynomial of degree ``DEGREE`` on [low, high] whose largest weighted error is least, and that error."""
    u = -np.cos(np.linspace(0, np.pi, SAMPLES))
    v = (low + high) / 2 + (high - low) / 2 * u
    wanted, importance = target(v), weight(v)
    error, best = lawson(
        chebvander(u, DEGREE), wanted, 1 / importance, lambda fitted: (importance * np.abs(fitted - wanted)).max()
    )
    return Chebyshev(best, domain=[low, high]), error


def _equal_breaks(target: Chebyshev, limit: float) -> tuple[float, float]:
    """The two breaks that give three pieces of equal error, judged by their quick interpolants."""

    def error(low: float, high: float) -> float:
        v = np.linspace(low, high, SAMPLES)
        return np.abs(Chebyshev.interpolate(target, DEGREE, domain=[low, high])(v) - target(v)).max()

    def second_break(first: float) -> float:
        return _bisect(lambda b: error(first, b) < error(b, limit), first + 1e-3, limit - 1e-3)

    def first_is_better(first: float) -> bool:
        return error(0, first) < error(first, second_break(first))

    first = round(_bisect(first_is_better, 1e-3, limit - 2e-3), 3)
    return first, round(second_break(first), 3)
