"""Derives the arithmetic decoders of 16-bit outputs (decoders/short.py says what they are).

Every 16-bit input is sent through a correctly rounded forward, which gives for each output the best decode there is:
the mean of f' over its inputs, moved as far as the least worst error demands. The polynomials miss it by the least
multiple of a tolerance that says what hardly matters: a share of the spread of f' over those inputs, which is lost
anyway, and half of what rounding the gradient costs. So they are good near the minimum, where much is lost, and far
from it, where nothing is. Which share, and where the clamp begins, is what leaves the contract the most room.

Where that misses the contract, the tolerance is a share of what the contract's worst error leaves instead. A forward
of several rounded steps sends an odd few inputs to some outputs, and no smooth function comes near the best decode
of each; this asks for it only where the worst error needs it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from numpy.polynomial.chebyshev import chebvander
from numpy.polynomial.polynomial import polyval

from optiacts.curves import Curve, CurveError, Unimodal
from optiacts.decoders.fitting.lawson import Array, lawson, single
from optiacts.decoders.fitting.quality import Quality, first_within
from optiacts.decoders.inverse import derivative_from_output
from optiacts.decoders.rounded import rounded_forward
from optiacts.decoders.short import ShortDecoder
from optiacts.decoders.table import every_value, normal_mass

DEGREES = {torch.bfloat16: (4, 5), torch.float16: (5, 7)}  # left, right
SHIFT, LEAST = 0.2, (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # in units in the last place of y_min: see decoders/short.py
SMALLEST = 2.0**-40  # left outputs below this fraction of y_min have no derivative to speak of
MOST = 13.0  # above it f' is 1
SMALL = 0.02  # derivatives below it are judged by their absolute error
SPREADS = (0.05, 0.1, 0.15, 0.2, 0.3)  # the share of the lost information that a decode may miss as well: to try
LEFT_OVER = (0.01, 0.02, 0.05, 0.1)  # the share of what the contract leaves: to try
LIMIT = 1.3  # the contract on a GPU, in floors
# Until the contract is kept: whether tolerances are by it, and how much higher the degrees are. One degree more costs
# a GPU one instruction for each element.
ATTEMPTS = ((False, 0), (True, 0), (True, 1), (True, 2))
# What a branch may add, in floors, to the worst error and to the RMS error, and by how many tolerances it may miss.
ROOM = (0.2, 0.5, 2.0)


@dataclasses.dataclass(frozen=True)
class Branch:
    """The distinct outputs of one branch, the best decode of each, the spread and the mass of N(0, 1) behind it."""

    y: Array
    best: Array
    mean: Array
    lowest: Array
    highest: Array
    mass: Array
    floors: tuple[float, float]  # the least worst and RMS error, of both branches
    rounding: Array  # how far the best decode may be missed where nothing is lost
    by_contract: bool = False  # the tolerance is a share of what the contract leaves, not of what is lost

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares to try."""
        return LEFT_OVER if self.by_contract else SPREADS

    def tolerance(self, share: float) -> Array:
        room = (self.highest - self.lowest) / 2
        if self.by_contract:
            room = LIMIT * self.floors[0] - np.maximum(self.highest - self.best, self.best - self.lowest)
        return share * room + self.rounding

    def worst(self, decoded: Array) -> float:
        """The worst error, in floors."""
        return float(np.maximum(self.highest - decoded, decoded - self.lowest).max() / self.floors[0])

    def added(self, decoded: Array) -> float:
        """What the decode adds to the square of the RMS error."""
        return float((self.mass * (decoded - self.mean) ** 2).sum())

    def cost(self, decoded: Array) -> float:
        """The largest part of its room that ``decoded`` takes."""
        rms = np.sqrt((self.mass * (decoded - self.best) ** 2).sum()) / self.floors[1]
        missed = (np.abs(decoded - self.best) / self.tolerance(max(self.shares))).max()
        return float(max(np.array((self.worst(decoded) - 1, rms, missed)) / ROOM))


class Problem:
    """One curve in both 16-bit dtypes."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        self._branches = {dtype: branches(curve, dtype) for dtype in DEGREES}

    def derive(self) -> dict[str, Any]:
        return {_name(dtype): dataclasses.asdict(self._derive(dtype)) for dtype in DEGREES}

    def judge(self, data: Mapping[str, Any]) -> tuple[Quality, ...]:
        return tuple(
            quality for dtype in DEGREES for quality in self._judge(dtype, ShortDecoder(**data[_name(dtype)]))
        )

    def _derive(self, dtype: torch.dtype) -> ShortDecoder:
        left, right = self._branches[dtype]

        def attempt(by_contract: bool, more: int) -> ShortDecoder:
            sides = replace(left, by_contract=by_contract), replace(right, by_contract=by_contract)
            return derive(self._curve, dtype, sides, more)

        attempts = itertools.starmap(attempt, ATTEMPTS)
        return first_within(attempts, lambda decoder: self._judge(dtype, decoder))

    def _judge(self, dtype: torch.dtype, decoder: ShortDecoder) -> tuple[Quality, ...]:
        left, right = self._branches[dtype]
        on_left, on_right = decode(decoder, left.y, True), decode(decoder, right.y, False)
        worst, side = max((left.worst(on_left), "left"), (right.worst(on_right), "right"))
        lost = left.floors[1] ** 2
        rms = np.sqrt((lost + left.added(on_left) + right.added(on_right)) / lost)
        return (
            Quality(f"{_name(dtype)}: worst error in floors ({side})", worst, LIMIT),
            Quality("RMS", float(rms), LIMIT),
        )

    def advice(self) -> str:
        c1, c2 = tail_of(self._curve)
        return (
            "On the right, try another tail: 1 - f' falls like exp(-(c1 y + c2 y^2)). It is "
            f"{_tail(self._curve)}; it seems to be near ({c1:.2g}, {c2:.2g}). On the left, a forward of several ops "
            f"loses most; raise ATTEMPTS in {__name__}. --parts polynomials valley is all that a CPU needs"
        )


def branches(curve: Curve, dtype: torch.dtype) -> tuple[Branch, Branch]:
    """The left and the right branch, by going through every finite input."""
    x = every_value(dtype)
    x = x[x.isfinite()]
    y = rounded_forward(curve, x)
    x, y = x[y.isfinite()], y[y.isfinite()]  # a step of the forward may overflow
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
        # where a rounded output says less than rounding does, no smooth function follows it
        rounding = torch.finfo(dtype).eps / 4 * np.maximum(np.abs(best), SMALL) + np.abs(best - exact) / 4
        found.append(Branch(outputs, best, mean, lowest, highest, total, (worst, lost**0.5), rounding))
    return found[0], found[1]


def derive(curve: Curve, dtype: torch.dtype, sides: tuple[Branch, Branch], more: int) -> ShortDecoder:
    """The decoder of one dtype, with polynomials ``more`` degrees higher than usual."""
    left, right = sides
    near = torch.tensor(curve.y_min, dtype=dtype)
    ulp = float((near - torch.nextafter(near, torch.zeros_like(near))).abs())
    y_min, scale = single(curve.y_min + SHIFT * ulp), single(1 / curve.y_min)
    c1, c2 = _tail(curve)
    envelope = single(-(c1 + 2 * c2 * curve.y_min) / np.log(2)), single(-c2 / np.log(2))

    def fit_left(least: float) -> tuple[float, float, tuple[float, ...]]:
        largest = single(1 + least * ulp / curve.y_min)
        v = np.sqrt(-np.log2(np.clip(left.y * scale, SMALLEST, largest)))
        cost, polynomial = _fit(left, v, left.y, 0.0, DEGREES[dtype][0] + more)
        return cost, largest, polynomial

    def fit_right(least: float) -> tuple[float, float, tuple[float, ...]]:
        above = np.clip(right.y - y_min, single(least * ulp), MOST)
        fall = np.exp2(above * (envelope[0] + above * envelope[1]))
        cost, polynomial = _fit(right, np.sqrt(above), fall, 1.0, DEGREES[dtype][1] + more)
        return cost, single(least * ulp), polynomial

    _, largest, left_polynomial = min(map(fit_left, LEAST))
    _, least, right_polynomial = min(map(fit_right, LEAST))
    return ShortDecoder(y_min, least, MOST, scale, SMALLEST, largest, left_polynomial, right_polynomial, envelope)


def decode(s: ShortDecoder, y: Array, left: bool) -> Array:
    """f' of the outputs of one branch, in float64."""
    if left:
        return y * polyval(np.sqrt(-np.log2(np.clip(y * s.scale, s.smallest, s.largest))), s.left)
    above = np.clip(y - s.y_min, s.least, s.most)
    return 1 + np.exp2(above * polyval(above, s.envelope)) * polyval(np.sqrt(above), s.right)


def tail_of(curve: Curve) -> tuple[float, float]:
    """c1 and c2 for which exp(-(c1 y + c2 y^2)), times a power of y, falls as 1 - f' does, by least squares."""
    x = torch.linspace(1, 16, 1501, dtype=torch.float64)
    y = curve.function(x, torch).numpy()
    missing = (curve.derivative(x, torch) - 1).abs().numpy()
    used = (y > 3) & (missing > 1e-13)
    columns = np.stack([np.ones_like(y), np.log(y.clip(1)), -y, -y * y], axis=1)[used]
    _, _, c1, c2 = np.linalg.lstsq(columns, np.log(missing[used]), rcond=None)[0]
    return float(c1), float(c2)


def _fit(branch: Branch, v: Array, factor: Array, offset: float, degree: int) -> tuple[float, tuple[float, ...]]:
    """The polynomial p for which ``offset`` + ``factor`` * p(v) decodes best, after its cost."""
    ends = (float(v.min()), float(v.max()))
    basis = chebvander((2 * v - sum(ends)) / (ends[1] - ends[0]), degree) * factor[:, None]
    cost, best = min(
        (
            lawson(
                basis,
                branch.best - offset,
                branch.tolerance(share),
                lambda fitted: branch.cost(offset + fitted),
                floor=1e-3,
            )
            for share in branch.shares
        ),
        key=lambda found: found[0],
    )
    in_v = Chebyshev(best, domain=ends).convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1])
    return cost, tuple(single(c) for c in in_v.coef)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tail(curve: Curve) -> tuple[float, float]:
    if not isinstance(curve.decoder, Unimodal):
        raise CurveError(f"{curve.name} has no tail: it is read in closed form")
    return curve.decoder.tail
