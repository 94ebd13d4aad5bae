"""Derives the arithmetic decoders of 16-bit outputs (src/optiacts/curves/short.json).

    python tools/fit_short.py            rewrites the file
    python tools/fit_short.py --check    exit status 1 if the committed file differs

Every 16-bit input is sent through PyTorch's own forward, which gives for each output the best decode there is: the
mean of f' over its inputs, moved as far as the least worst error demands. The polynomials miss it by the least
multiple of a tolerance that says what hardly matters: a share of the spread of f' over those inputs, which is lost
anyway, and half of what rounding the gradient costs. So they are good near the minimum, where much is lost, and far
from it, where nothing is. Which share, and where the clamp begins, is what leaves the contract the most room.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from generated import write_or_check
from numpy.polynomial import Chebyshev
from numpy.polynomial.chebyshev import chebvander

from optiacts.curves import CURVES, Curve
from optiacts.curves.inverse import derivative_from_output
from optiacts.curves.short import ShortDecoder
from optiacts.curves.table import every_value, normal_mass

TARGET = Path(__file__).parents[1] / "src/optiacts/curves/short.json"
DEGREES = {torch.bfloat16: (4, 5), torch.float16: (5, 7)}  # left, right
SHIFT, LEAST = 0.2, (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # in units in the last place of y_min: see curves/short.py
SMALLEST = 2.0**-40  # left outputs below this fraction of y_min have no derivative to speak of
MOST = 13.0  # above it f' is 1
SMALL = 0.02  # derivatives below it are judged by their absolute error
SPREADS = (0.05, 0.1, 0.15, 0.2, 0.3)  # the share of the lost information that a decode may miss as well: to try
# What a branch may add, in floors, to the worst error and to the RMS error, and by how many tolerances it may miss.
ROOM = (0.2, 0.5, 2.0)
# c1, c2: 1 - f' falls like exp(-(c1 y + c2 y^2)). Read off the curves' tails; tanh-GELU's is cubic, this is near it.
TAILS = {"gelu": (0, 0.5), "gelu_tanh": (0, 0.6), "silu": (1, 0), "mish": (2, 0), "quick_gelu": (1.702, 0)}

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Branch:
    """The distinct outputs of one branch, the best decode of each, the spread and the mass of N(0, 1) behind it."""

    y: Array
    best: Array
    lowest: Array
    highest: Array
    mass: Array
    floors: tuple[float, float]  # the least worst and RMS error, of both branches
    rounding: Array  # how far the best decode may be missed where nothing is lost

    def tolerance(self, share: float) -> Array:
        return share * (self.highest - self.lowest) / 2 + self.rounding

    def cost(self, decoded: Array) -> float:
        """The largest part of its room that ``decoded`` takes."""
        worst = np.maximum(self.highest - decoded, decoded - self.lowest).max() / self.floors[0] - 1
        rms = np.sqrt((self.mass * (decoded - self.best) ** 2).sum()) / self.floors[1]
        missed = (np.abs(decoded - self.best) / self.tolerance(max(SPREADS))).max()
        return float(max(np.array((worst, rms, missed)) / ROOM))


def branches(curve: Curve, dtype: torch.dtype) -> tuple[Branch, Branch]:
    """The left and the right branch, by going through every finite input."""
    x = every_value(dtype)
    x = x[x.isfinite()]
    y = curve.forward(x)
    slope, mass = curve.derivative(x.double(), torch).numpy(), normal_mass(x).clamp(min=1e-300).numpy()
    mass /= mass.sum()
    left = (x < curve.threshold(dtype)).numpy()
    parts, lost = [], 0.0
    for side in (left, ~left):
        outputs, group = np.unique(y.double().numpy()[side], return_inverse=True)
        total = np.bincount(group, mass[side])
        mean = np.bincount(group, slope[side] * mass[side]) / total
        lowest, highest = np.full(len(outputs), np.inf), np.full(len(outputs), -np.inf)
        np.minimum.at(lowest, group, slope[side])
        np.maximum.at(highest, group, slope[side])
        parts.append((outputs, mean, lowest, highest, total))
        lost += float((mass[side] * (slope[side] - mean[group]) ** 2).sum())
    worst = max(float((highest - lowest).max()) / 2 for _, _, lowest, highest, _ in parts)
    found = []
    for on_left, (outputs, mean, lowest, highest, total) in zip((True, False), parts, strict=True):
        best = np.clip(mean, highest - worst, lowest + worst)
        point = torch.from_numpy(outputs)
        exact = derivative_from_output(curve, point, torch.full_like(point, on_left, dtype=torch.bool)).numpy()
        # where PyTorch's forward has lost more than rounding does, no smooth function follows it
        rounding = torch.finfo(dtype).eps / 4 * np.maximum(np.abs(best), SMALL) + np.abs(best - exact) / 4
        found.append(Branch(outputs, best, lowest, highest, total, (worst, lost**0.5), rounding))
    return found[0], found[1]


def fit(branch: Branch, v: Array, factor: Array, offset: float, degree: int) -> tuple[float, tuple[float, ...]]:
    """The polynomial p for which ``offset`` + ``factor`` * p(v) decodes best, and its cost.

    Lawson's algorithm: least squares, again and again, each point's weight multiplied by its error.
    """
    ends = (float(v.min()), float(v.max()))
    powers = chebvander((2 * v - sum(ends)) / (ends[1] - ends[0]), degree) * factor[:, None]
    least, best = np.inf, np.zeros(degree + 1)
    for share in SPREADS:
        lawson, tolerance = np.ones_like(v), branch.tolerance(share)
        for _ in range(60):
            weight = np.sqrt(lawson) / tolerance
            solution = np.linalg.lstsq(powers * weight[:, None], (branch.best - offset) * weight, rcond=None)[0]
            decoded = offset + powers @ solution
            cost = branch.cost(decoded)
            if cost < least:
                least, best = cost, solution
            errors = np.abs(decoded - branch.best) / tolerance
            lawson *= errors + errors.max() / 1000
            lawson /= lawson.mean()
    in_v = Chebyshev(best, domain=ends).convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1])
    return least, tuple(single(float(c)) for c in in_v.coef)


def single(value: float) -> float:
    """``value`` as a float32 that all machines agree on."""
    return float(np.float32(f"{value:.6e}"))


def derive(curve: Curve, dtype: torch.dtype) -> tuple[ShortDecoder, tuple[float, float]]:
    """The decoder, and the costs of its left and its right branch."""
    left, right = branches(curve, dtype)
    near = torch.tensor(curve.y_min, dtype=dtype)
    ulp = float((near - torch.nextafter(near, torch.zeros_like(near))).abs())
    y_min, scale = single(curve.y_min + SHIFT * ulp), single(1 / curve.y_min)
    c1, c2 = TAILS[curve.name]
    envelope = single(-(c1 + 2 * c2 * curve.y_min) / np.log(2)), single(-c2 / np.log(2))

    def fit_left(least: float) -> tuple[float, float, tuple[float, ...]]:
        largest = single(1 + least * ulp / curve.y_min)
        v = np.sqrt(-np.log2(np.clip(left.y * scale, SMALLEST, largest)))
        cost, polynomial = fit(left, v, left.y, 0.0, DEGREES[dtype][0])
        return cost, largest, polynomial

    def fit_right(least: float) -> tuple[float, float, tuple[float, ...]]:
        above = np.clip(right.y - y_min, single(least * ulp), MOST)
        fall = np.exp2(above * (envelope[0] + above * envelope[1]))
        cost, polynomial = fit(right, np.sqrt(above), fall, 1.0, DEGREES[dtype][1])
        return cost, single(least * ulp), polynomial

    cost_left, largest, left_polynomial = min(map(fit_left, LEAST))
    cost_right, least, right_polynomial = min(map(fit_right, LEAST))
    decoder = ShortDecoder(y_min, least, MOST, scale, SMALLEST, largest, left_polynomial, right_polynomial, envelope)
    return decoder, (cost_left, cost_right)


def render() -> str:
    """The text of the committed file."""
    fitted = {
        name: {str(dtype).removeprefix("torch."): dataclasses.asdict(derive(curve, dtype)[0]) for dtype in DEGREES}
        for name, curve in CURVES.items()
    }
    return json.dumps(fitted, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(write_or_check(__doc__, TARGET, render))
