"""Derives the coefficients that lead from an output to its input (decoders/preimage.py says how).

The input is found in float64, which is exact enough by six digits. A branch's breaks are placed where the errors of
its pieces are equal.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from numpy.polynomial.chebyshev import cheb2poly, chebvander

from optiacts.curves import Curve, Unimodal
from optiacts.decoders.fitting.lawson import Array, lawson, single
from optiacts.decoders.fitting.quality import Quality
from optiacts.decoders.inverse import inverse
from optiacts.decoders.preimage import DEGREE, PIECES, SMALLEST, Preimage

SAMPLES = 400  # of a piece
ONE = 2.0**-26  # on the right, x / y may differ from 1 by so much where the pieces end
FADED = 18.0  # exponent of the tail's falling off, from which on x is y
FLOAT16_ENDS = 4.0  # v of its smallest outputs on the left
BEYOND = 8.0  # so many times more may the relative error be of what bfloat16 alone has, as its unit is


@dataclass(frozen=True)
class Form:
    """What is fitted: pieces of a branch and their degree, and the most relative error, that of rounding included.

    ``tailed``: the right branch by its difference from y. ``short``: for 16 bits.
    """

    what: str
    pieces: int
    degree: int
    limit: float
    tailed: bool = False
    short: bool = False


FLOAT32 = Form("float32", PIECES, DEGREE, 3e-7)
GPU = Form("float32 on a GPU", 2, 9, 1e-6, tailed=True)
SHORT = Form("16 bits on a GPU", 1, 9, 1e-4, tailed=True, short=True)  # a fifth of float16's unit


class Problem:
    """One curve in one form."""

    def __init__(self, curve: Curve, form: Form = FLOAT32) -> None:
        self._curve, self._form = curve, form
        assert isinstance(curve.decoder, Unimodal)
        self._rate = float(curve.decoder.tail[0]) if form.tailed else 0.0
        if form.tailed:
            right = (FADED / self._rate) ** 0.5
        else:
            right = next(v for v in np.arange(2.0, 12.0, 0.01) if abs(self._right(np.array([v]))[0][0] - 1) < ONE)
        self._limits = single(round(float(np.sqrt(-np.log(SMALLEST))), 3)), single(round(float(right), 3))

    def derive(self) -> dict[str, Any]:
        breaks: list[float] = []
        pieces: list[Chebyshev] = []
        for target, limit in zip((self._left, self._right), self._limits, strict=True):
            inner = [single(b) for b in _equal_breaks(target, limit, self._form)]
            breaks += inner
            edges = [0.0, *inner, limit]
            pieces += [_fit(target, low, high, self._form.degree) for low, high in itertools.pairwise(edges)]
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
                rate=self._rate,
            )
        )

    def judge(self, data: Mapping[str, Any]) -> tuple[Quality, ...]:
        """The largest relative error, with the coefficients as they are rounded."""
        c, count = Preimage(**data), self._form.pieces
        worst = 0.0
        for branch, target in enumerate((self._left, self._right)):
            inner = c.breaks[branch * (count - 1) : (branch + 1) * (count - 1)]
            v = np.linspace(1e-3, self._limits[branch], 8000)
            piece = branch * count + np.searchsorted(inner, v)
            u = v * np.array(c.scale)[piece] + np.array(c.shift)[piece]
            found = sum(np.array(row)[piece] * u**power for power, row in enumerate(c.polynomials))
            worst = max(worst, _error(found, target(v)))
        wrong = abs(c.y_min_high + c.y_min_low - self._curve.y_min) > 1e-14 or c.rate != self._rate
        found = np.inf if wrong else worst
        return (Quality(f"{self._form.what}: relative error of the input", found, self._form.limit),)

    def advice(self) -> str:
        return (
            f"Its inverse needs more than {self._form.pieces} pieces of degree {self._form.degree} a branch: raise "
            "either, for all curves"
        )

    def _left(self, v: Array) -> tuple[Array, Array]:
        """What is fitted, and how large an error may be, in units of the relative one."""
        x = self._inverse(self._curve.y_min * np.exp(-v * v), True)
        return x, np.abs(x) * np.where(self._form.short & (v > FLOAT16_ENDS), BEYOND, 1.0)

    def _right(self, v: Array) -> tuple[Array, Array]:
        y = self._curve.y_min + v * v
        if self._rate:
            growth = np.exp(self._rate * v * v)
            return (self._inverse(y, False) - y) * growth, np.maximum(1.0, y) * growth
        y = np.where(np.abs(y) < 1e-9, 1e-9, y)
        ratio = self._inverse(y, False) / y
        return ratio, np.abs(ratio)

    def _inverse(self, y: Array, left: bool) -> Array:
        found: Array = inverse(self._curve, torch.from_numpy(y), torch.full(y.shape, left)).numpy()
        return found


Gpu = functools.partial(Problem, form=GPU)
Short = functools.partial(Problem, form=SHORT)
Target = Callable[[Array], tuple[Array, Array]]


def _error(found: Any, target: tuple[Array, Array]) -> float:
    return float((np.abs(found - target[0]) / target[1]).max())


def _fit(target: Target, low: float, high: float, degree: int) -> Chebyshev:
    """The polynomial of such a degree whose largest error is least."""
    u = -np.cos(np.linspace(0, np.pi, SAMPLES + 2))[1:-1]
    wanted = target((low + high) / 2 + (high - low) / 2 * u)
    _, best = lawson(chebvander(u, degree), *wanted, lambda fitted: _error(fitted, wanted))
    return Chebyshev(best, domain=[low, high])


def _equal_breaks(target: Target, limit: float, form: Form) -> list[float]:
    """The breaks that give pieces of equal error, judged by quick fits, of least squares."""

    def error(low: float, high: float) -> float:
        u = np.append(-np.cos(np.linspace(0, np.pi, 50))[1:-1], 1.0)
        wanted, tolerance = target((low + high) / 2 + (high - low) / 2 * u)
        basis = chebvander(u, form.degree)
        solution = np.linalg.lstsq(basis / tolerance[:, None], wanted / tolerance, rcond=None)[0]
        return _error(basis @ solution, (wanted, tolerance))

    def furthest(low: float, tolerance: float) -> float:
        near, far = low, limit
        for _ in range(12):
            middle = (near + far) / 2
            near, far = (middle, far) if error(low, middle) < tolerance else (near, middle)
        return near

    def breaks_for(tolerance: float) -> list[float]:
        breaks = [0.0]
        for _ in range(form.pieces - 1):
            breaks.append(round(furthest(breaks[-1], tolerance), 3))
        return breaks[1:]

    if form.pieces == 1:
        return []
    tight, loose = -22.0, -5.0  # of the error's logarithm
    for _ in range(10):
        middle = (tight + loose) / 2
        reached = error(breaks_for(float(np.exp(middle)))[-1], limit) < np.exp(middle)
        tight, loose = (tight, middle) if reached else (middle, loose)
    return breaks_for(float(np.exp(loose)))
