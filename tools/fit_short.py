"""Derives the arithmetic decoders of 16-bit outputs (src/optiacts/curves/short.json).

    python tools/fit_short.py            rewrites the file
    python tools/fit_short.py --check    exit status 1 if the committed file differs

Every 16-bit input is sent through PyTorch's own forward, which gives for each output the best decode there is:
the mean of f' over its inputs, moved as far as the least worst error demands. The
polynomials fit those values, weighted by the mass of x ~ N(0, 1) plus some even weight along v, which keeps
the worst error down where N(0, 1) hardly goes. Where the right branch becomes constant (``most``) is searched.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from numpy.polynomial.chebyshev import chebvander

from optiacts.curves import CURVES, Curve
from optiacts.curves.short import ShortDecoder
from optiacts.curves.table import every_value, normal_mass

TARGET = Path(__file__).parents[1] / "src/optiacts/curves/short.json"
DEGREES = {torch.bfloat16: (4, 7), torch.float16: (4, 8)}  # left, right: the lowest that meet the contract
SHIFT, LEAST = 0.2, (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # in units in the last place of y_min: see curves/short.py
SMALLEST = 2.0**-40  # left outputs below this fraction of y_min have no derivative to speak of
CAPS = np.arange(1.6, 3.2, 0.1)  # in v
EVEN = (0.02, 0.2)  # shares of even weight to try
TAIL = 5e-4  # the share of relative errors, against absolute ones, on the left branch

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Branch:
    """The distinct outputs of one branch: the best decode of each, the spread of f' and the mass behind it."""

    y: Array
    best: Array
    lowest: Array
    highest: Array
    mass: Array
    floor: float  # the least worst error, of both branches


def branches(curve: Curve, dtype: torch.dtype) -> tuple[Branch, Branch]:
    """The left and the right branch, by going through every finite input."""
    x = every_value(dtype)
    x = x[x.isfinite()]
    y = curve.forward(x)
    slope, mass = curve.derivative(x.double(), torch).numpy(), normal_mass(x).clamp(min=1e-300).numpy()
    left = (x < curve.threshold(dtype)).numpy()
    parts = []
    for side in (left, ~left):
        outputs, group = np.unique(y.double().numpy()[side], return_inverse=True)
        total = np.bincount(group, mass[side])
        mean = np.bincount(group, slope[side] * mass[side]) / total
        lowest, highest = np.full(len(outputs), np.inf), np.full(len(outputs), -np.inf)
        np.minimum.at(lowest, group, slope[side])
        np.maximum.at(highest, group, slope[side])
        parts.append((outputs, mean, lowest, highest, total))
    floor = max(float((highest - lowest).max()) / 2 for _, _, lowest, highest, _ in parts)
    whole = sum(part[4].sum() for part in parts)
    first, second = (
        Branch(y, np.clip(mean, highest - floor, lowest + floor), lowest, highest, mass / whole, floor)
        for y, mean, lowest, highest, mass in parts
    )
    return first, second


def fit(branch: Branch, v: Array, factor: Array, degree: int) -> tuple[float, tuple[float, ...]]:
    """The polynomial p for which ``factor`` * p(v) decodes best, and how far it misses the floors."""
    ends = (float(v.min()), float(v.max()))
    powers = chebvander((2 * v - sum(ends)) / (ends[1] - ends[0]), degree) * factor[:, None]
    order, spacing = np.argsort(v, kind="stable"), np.empty_like(v)
    spacing[order] = np.gradient(v[order]).clip(0, 0.3)
    best_cost, best = np.inf, np.zeros(degree + 1)
    for share in EVEN:
        weight = np.sqrt(
            branch.mass + (share + (TAIL / np.maximum(np.abs(factor), SMALLEST)) ** 2) * spacing / spacing.sum()
        )
        solution = np.linalg.lstsq(powers * weight[:, None], branch.best * weight, rcond=None)[0]
        decoded = powers @ solution
        worst = np.maximum(branch.highest - decoded, decoded - branch.lowest).max() / branch.floor
        rms = np.sqrt((branch.mass * (decoded - branch.best) ** 2).sum()) / branch.floor
        cost = max(worst - 1, 0) + 10 * rms
        if cost < best_cost:
            best_cost, best = cost, solution
    in_v = Chebyshev(best, domain=ends).convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1])
    return best_cost, tuple(single(float(c)) for c in in_v.coef)


def single(value: float) -> float:
    """``value`` as a float32 that all machines agree on."""
    return float(np.float32(f"{value:.6e}"))


def derive(curve: Curve, dtype: torch.dtype) -> ShortDecoder:
    left, right = branches(curve, dtype)
    near = torch.tensor(curve.y_min, dtype=dtype)
    ulp = float((near - torch.nextafter(near, torch.zeros_like(near))).abs())
    y_min, scale = single(curve.y_min + SHIFT * ulp), single(1 / curve.y_min)

    def fit_left(largest: float) -> tuple[float, float, tuple[float, ...]]:
        v = np.sqrt(-np.log2(np.clip(left.y * scale, SMALLEST, largest)))
        cost, polynomial = fit(left, v, left.y, DEGREES[dtype][0])
        return cost, largest, polynomial

    def fit_right(least: float, most: float) -> tuple[float, float, float, tuple[float, ...]]:
        v = np.sqrt(np.clip(right.y - y_min, least, most))
        cost, polynomial = fit(right, v, np.ones_like(v), DEGREES[dtype][1])
        return cost, least, most, polynomial

    _, largest, left_polynomial = min(fit_left(single(1 + least * ulp / curve.y_min)) for least in LEAST)
    best_cap = min(fit_right(single(LEAST[0] * ulp), single(cap**2)) for cap in CAPS)[2]
    _, least, most, right_polynomial = min(fit_right(single(least * ulp), best_cap) for least in LEAST)
    return ShortDecoder(y_min, least, most, scale, SMALLEST, largest, left_polynomial, right_polynomial)


def render() -> str:
    """The text of the committed file."""
    fitted = {
        name: {str(dtype).removeprefix("torch."): dataclasses.asdict(derive(curve, dtype)) for dtype in DEGREES}
        for name, curve in CURVES.items()
    }
    return json.dumps(fitted, indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    if parser.parse_args().check:
        return int(render() != TARGET.read_text())
    TARGET.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
