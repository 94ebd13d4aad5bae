"""The form of the generated decoders, which tools/fit_curves.py writes to coefficients.json.

One decode routine per backend serves every curve. With

    d = max((y - y_min_high) - y_min_low, least),        in essence y - y_min,

the decode unfolds both singularities of the inverse into one variable,

    v = sqrt(d)                       on the right branch,
    v = sqrt(-log(1 - d / -y_min))    on the left branch,

clamps it to ``limits``, maps it to u = v * scale + shift in [-1, 1] on its piece, and evaluates that
piece's polynomial p(u). The derivative is p(u) on the right branch and y * p(u) on the left.
Piece 0 is the left branch; pieces 1, 2, 3 are the right branch below, between and above ``breaks``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from optiacts.curves._generated import read

PIECES = 4
DEGREE = 8


@dataclass(frozen=True)
class Coefficients:
    """Everything a backend needs to decode one curve in float32.

    All values that enter float32 arithmetic are exact float32 numbers. ``y_min_high + y_min_low`` is y_min to
    twice that precision plus about half a unit in the last place, and ``least`` is the smallest d: with these
    two, the decode of an output near the minimum is the middle of f' over the inputs that it stands for.
    """

    x_min: float
    y_min: float
    y_min_high: float
    y_min_low: float
    least: float
    limits: tuple[float, float]  # largest v on the left, on the right
    breaks: tuple[float, float]  # in v, on the right branch
    scale: tuple[float, ...]  # [piece]
    shift: tuple[float, ...]  # [piece]
    polynomials: tuple[tuple[float, ...], ...]  # [power][piece], lowest power first
    errors: tuple[float, ...]  # [piece]: largest |decode - f'| in exact arithmetic


@functools.cache
def load() -> dict[str, Coefficients]:
    """The committed coefficients of every curve, by name."""
    return read("coefficients.json", Coefficients)
