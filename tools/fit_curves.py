"""Derives the decoders' coefficients from the curves' definitions and writes them to the package.

    python tools/fit_curves.py            rewrites src/optiacts/curves/coefficients.json
    python tools/fit_curves.py --check    exit status 1 if the committed file differs

The minimum and the derivative as a function of the unfolded variable v (see curves/_format.py) are
computed with 40 digits. Each branch is sampled at Chebyshev nodes, which gives an interpolant exact to
float64; the pieces are then polynomials of degree 8 with the least possible largest error of f', the right
branch's breaks placed where the three pieces' errors are about equal.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from generated import write_or_check
from mpmath import mp
from numpy.polynomial import Chebyshev
from numpy.polynomial.chebyshev import cheb2poly

from optiacts.curves import CURVES, Curve
from optiacts.curves._format import DEGREE, Coefficients

mp.dps = 40
TARGET = Path(__file__).parents[1] / "src/optiacts/curves/coefficients.json"
NEGLIGIBLE = 1e-8  # the decode is constant where f' (left) or 1 - f' (right) is smaller than this
BRANCH_NODES = 160
# Near the minimum a float32 output stands for an interval of inputs, and the middle of f' over it belongs to a
# smaller d than y - y_min. In half units in the last place of y_min: how much smaller, and the least d. Chosen
# where the worst error over all inputs near the minimum, with PyTorch's own forwards, is least.
BIAS, LEAST = 1.2, 0.8
FURTHEST = 60  # every curve's tails are below NEGLIGIBLE there

Array = np.ndarray


def single(value: float) -> float:
    """``value`` rounded to float32."""
    return float(np.float32(value))


def bisect(holds: Callable[[Any], bool], low: Any, high: Any, steps: int = 30) -> Any:
    """The border between where ``holds`` is true (at ``low``) and where it is not (at ``high``)."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def solve(holds: Callable[[mpmath.mpf], bool], low: float, high: float) -> mpmath.mpf:
    """The same border to the working precision."""
    return bisect(holds, mp.mpf(low), mp.mpf(high), steps=140)


def branch(curve: Curve, x_min: mpmath.mpf, y_min: mpmath.mpf, left: bool, limit: float) -> Chebyshev:
    """p(v) on one branch, v from 0 to ``limit``, as an interpolant exact to float64."""

    def p(v: float) -> float:
        v = mp.mpf(v)
        y = y_min * mp.exp(-v * v) if left else y_min + v * v
        ends = (-FURTHEST, x_min) if left else (x_min, FURTHEST)
        x = solve(lambda x: (curve.function(x, mp) > y) == left, *ends)
        slope = curve.derivative(x, mp)
        return float(slope / y if left else slope)

    return Chebyshev.interpolate(np.vectorize(p), BRANCH_NODES, domain=[0, limit])


def fit(target: Chebyshev, low: float, high: float, weight: Callable[[Array], Array]) -> tuple[Chebyshev, float]:
    """The polynomial of degree ``DEGREE`` on [low, high] whose largest weighted error is least, and that error.

    Lawson's algorithm: least squares, again and again, each point's weight multiplied by its error.
    """
    v = (low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0, np.pi, 400))
    wanted, importance, lawson = target(v), weight(v), np.ones_like(v)
    best, least = Chebyshev([0.0]), np.inf
    for _ in range(60):
        polynomial = Chebyshev.fit(v, wanted, DEGREE, domain=[low, high], w=importance * np.sqrt(lawson))
        errors = importance * np.abs(polynomial(v) - wanted)
        if errors.max() < least:
            best, least = polynomial, errors.max()
        lawson *= errors
        lawson /= lawson.mean()
    return best, float(least)


def equal_breaks(target: Chebyshev, limit: float) -> tuple[float, float]:
    """The two breaks that give three pieces of equal error, judged by their quick interpolants."""

    def error(low: float, high: float) -> float:
        v = np.linspace(low, high, 400)
        return np.abs(Chebyshev.interpolate(target, DEGREE, domain=[low, high])(v) - target(v)).max()

    def second_break(first: float) -> float:
        return bisect(lambda b: error(first, b) < error(b, limit), first + 1e-3, limit - 1e-3)

    def first_is_better(first: float) -> bool:
        return error(0, first) < error(first, second_break(first))

    first = round(bisect(first_is_better, 1e-3, limit - 2e-3), 3)
    return first, round(second_break(first), 3)


def derive(curve: Curve) -> Coefficients:
    x_min = solve(lambda x: curve.derivative(x, mp) < 0, -3, 0)
    y_min = curve.function(x_min, mp)
    left_end = bisect(lambda x: -curve.derivative(x, mp) < NEGLIGIBLE, mp.mpf(-FURTHEST), x_min - 1)
    right_end = bisect(lambda x: curve.derivative(x, mp) - 1 > NEGLIGIBLE, mp.mpf(3), mp.mpf(FURTHEST))
    limits = (
        single(round(float(mp.sqrt(-mp.log(curve.function(left_end, mp) / y_min))), 3)),
        single(round(float(mp.sqrt(curve.function(right_end, mp) - y_min)), 3)),
    )

    left = branch(curve, x_min, y_min, True, limits[0])
    right = branch(curve, x_min, y_min, False, limits[1])
    breaks = equal_breaks(right, limits[1])
    pieces = [
        fit(left, 0.0, limits[0], lambda v: -float(y_min) * np.exp(-v * v)),
        fit(right, 0.0, breaks[0], np.ones_like),
        fit(right, breaks[0], breaks[1], np.ones_like),
        fit(right, breaks[1], limits[1], np.ones_like),
    ]
    scales, shifts, columns = [], [], []
    for polynomial, _ in pieces:
        low, high = polynomial.domain
        scales.append(single(2 / (high - low)))
        shifts.append(single(-(low + high) / (high - low)))
        powers = cheb2poly(polynomial.coef)
        columns.append([single(c) for c in powers])
    y_high = single(float(y_min))
    half_ulp = float(np.spacing(np.float32(abs(y_high)))) / 2
    return Coefficients(
        x_min=float(x_min),
        y_min=float(y_min),
        y_min_high=y_high,
        y_min_low=single(float(y_min - mp.mpf(y_high)) + BIAS * half_ulp),
        least=single(LEAST * half_ulp),
        limits=limits,
        breaks=(single(breaks[0]), single(breaks[1])),
        scale=tuple(scales),
        shift=tuple(shifts),
        polynomials=tuple(zip(*columns, strict=True)),
        errors=tuple(float(f"{error:.2g}") for _, error in pieces),
    )


def render() -> str:
    """The text of the committed file."""
    return json.dumps({name: dataclasses.asdict(derive(curve)) for name, curve in CURVES.items()}, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(write_or_check(__doc__, TARGET, render))
