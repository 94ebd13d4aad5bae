"""Derives the polynomials of the curves' valleys (src/optiacts/curves/valley.json).

    python tools/fit_valley.py            rewrites the file
    python tools/fit_valley.py --check    exit status 1 if the committed file differs

Interpolants at Chebyshev nodes: on so short an interval the error left by the least degree that serves a dtype is
within a factor of two of the smallest possible one.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generated import write_or_check
from mpmath import mp
from numpy.polynomial import Chebyshev, Polynomial

from optiacts.curves import CURVES, Curve
from optiacts.curves.valley import Valley

TARGET = Path(__file__).parents[1] / "src/optiacts/curves/valley.json"
# output, slope. float32: that of the CPU kernels' polynomials. 16 bits: the output is wrong by less than 1/20 of the
# half unit in the last place to which it is then rounded, the slope by less than 1/10 of that of a gradient.
DEGREES = {torch.float32: (8, 8), torch.bfloat16: (5, 4), torch.float16: (6, 5)}

mp.dps = 40


def derive(curve: Curve, dtype: torch.dtype) -> Valley:
    low, high = curve.valley(torch.float64)
    centre = float(np.float32(curve.x_min))

    def polynomial(function: Callable[..., Any], degree: int) -> tuple[float, ...]:
        of_t = np.vectorize(lambda t: float(function(mp.mpf(t) + centre, mp)))
        fitted = Chebyshev.interpolate(of_t, degree, domain=[low - centre, high - centre])
        powers = fitted.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1])
        return tuple(float(np.float32(c)) for c in powers.coef)

    output, slope = DEGREES[dtype]
    return Valley(centre, polynomial(curve.function, output), polynomial(curve.derivative, slope))


def render() -> str:
    """The text of the committed file."""
    fitted = {
        name: {str(dtype).removeprefix("torch."): dataclasses.asdict(derive(curve, dtype)) for dtype in DEGREES}
        for name, curve in CURVES.items()
    }
    return json.dumps(fitted, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(write_or_check(__doc__, TARGET, render))
