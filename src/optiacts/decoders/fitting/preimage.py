"""Derives the coefficients that lead from a float32 output to its input (decoders/preimage.py says how).

The input is found in float64, which is exact enough by six digits. A branch's breaks are placed where the errors of
its pieces are equal.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from numpy.polynomial.chebyshev import cheb2poly, chebvander

from optiacts.curves import Curve
from optiacts.decoders.fitting.lawson import Array, lawson, single
from optiacts.decoders.fitting.quality import Quality
from optiacts.decoders.inverse import inverse
from optiacts.decoders.preimage import DEGREE, PIECES, SMALLEST, Preimage

SAMPLES = 400  # of a piece
LIMIT = 3e-7  # of the relative error, that of the coefficients' own rounding included
ONE = 2.0**-26  # on the right, x / y may differ from 1 by so much where the pieces end


class Problem:
    """One curve."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        straight = next(v for v in np.arange(2.0, 12.0, 0.01) if abs(self._right(np.array([v]))[0] - 1) < ONE)
        self._limits = single(round(float(np.sqrt(-np.log(SMALLEST))), 3)), single(round(float(straight), 3))

    def derive(self) -> dict[str, Any]:
        breaks: list[float] = []
        pieces: list[Chebyshev] = []
        for target, limit in zip((self._left, self._right), self._limits, strict=True):
            inner = [single(b) for b in _equal_breaks(target, limit)]
            breaks += inner
            edges = [0.0, *inner, limit]
            pieces += [_fit(target, low, high) for low, high in itertools.pairwise(edges)]
        y_high = single(self._curve.y_min)
        columns = [[single(c) for c in cheb2poly(polynomial.coef)] for polynomial in pieces]
        domains = [polynomial.domain for polynomial in pieces]
        return dataclasses.asdict(
            Preimage(
                y_min_high=y_high,
                y_min_low=single(self._curve.y_min - y_high),
                limits=self._limits,
                breaks=tuple(breaks),
                scale=tuple(single(2 / (high - low)) for low, high in domains),
                shift=tuple(single(-(low + high) / (high - low)) for low, high in domains),
                polynomials=tuple(zip(*columns, strict=True)),
            )
        )

    def judge(self, data: Mapping[str, Any]) -> tuple[Quality, ...]:
        """The largest relative error, with the coefficients as they are rounded."""
        c = Preimage(**data)
        worst = 0.0
        for branch, target in enumerate((self._left, self._right)):
            inner = c.breaks[branch * (PIECES - 1) : (branch + 1) * (PIECES - 1)]
            v = np.linspace(1e-3, self._limits[branch], 8000)
            piece = branch * PIECES + np.searchsorted(inner, v)
            u = v * np.array(c.scale)[piece] + np.array(c.shift)[piece]
            found = sum(np.array(row)[piece] * u**power for power, row in enumerate(c.polynomials))
            worst = max(worst, float(np.abs(found / target(v) - 1).max()))
        wrong = abs(c.y_min_high + c.y_min_low - self._curve.y_min) > 1e-14
        return (Quality("float32: relative error of the input", np.inf if wrong else worst, LIMIT),)

    def advice(self) -> str:
        return (
            f"Its inverse needs more than {PIECES} pieces of degree {DEGREE} a branch: raise either, for all curves"
        )

    def _left(self, v: Array) -> Array:
        return self._inverse(self._curve.y_min * np.exp(-v * v), True)

    def _right(self, v: Array) -> Array:
        y = self._curve.y_min + v * v
        y = np.where(np.abs(y) < 1e-9, 1e-9, y)
        return self._inverse(y, False) / y

    def _inverse(self, y: Array, left: bool) -> Array:
        found: Array = inverse(self._curve, torch.from_numpy(y), torch.full(y.shape, left)).numpy()
        return found


def _fit(target: Callable[[Array], Array], low: float, high: float) -> Chebyshev:
    """The polynomial of degree ``DEGREE`` whose largest relative error is least."""
    u = -np.cos(np.linspace(0, np.pi, SAMPLES + 2))[1:-1]
    wanted = target((low + high) / 2 + (high - low) / 2 * u)
    _, best = lawson(chebvander(u, DEGREE), wanted, np.abs(wanted), lambda fitted: np.abs(fitted / wanted - 1).max())
    return Chebyshev(best, domain=[low, high])


def _equal_breaks(target: Callable[[Array], Array], limit: float) -> list[float]:
    """The breaks that give pieces of equal error, judged by their quick interpolants."""

    def error(low: float, high: float) -> float:
        v = np.linspace(low + (high - low) * 1e-3, high, 50)
        wanted = target(v)
        found = Chebyshev.interpolate(target, DEGREE, domain=[low, high])(v)
        return float(np.abs(found / wanted - 1).max())

    def furthest(low: float, tolerance: float) -> float:
        near, far = low, limit
        for _ in range(12):
            middle = (near + far) / 2
            near, far = (middle, far) if error(low, middle) < tolerance else (near, middle)
        return near

    def breaks_for(tolerance: float) -> list[float]:
        breaks = [0.0]
        for _ in range(PIECES - 1):
            breaks.append(round(furthest(breaks[-1], tolerance), 3))
        return breaks[1:]

    tight, loose = -22.0, -5.0  # of the error's logarithm
    for _ in range(10):
        middle = (tight + loose) / 2
        reached = error(breaks_for(float(np.exp(middle)))[-1], limit) < np.exp(middle)
        tight, loose = (tight, middle) if reached else (middle, loose)
    return breaks_for(float(np.exp(loose)))
