"""What the CPU kernels promise of their time, and which measurements fall short of it.

A *ratio* is our time over that of PyTorch's own way, forward and backward, in one of at least ``PAIRS`` pairs of
neighbours in the order A B B A. What counts is the upper 95 % bound of their median.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PAIRS = 20
MORE_US = 20.0  # of an operation on few elements, where the call is what takes time
STEP = 1.02  # of a training step


@dataclass(frozen=True)
class Limits:
    """Of the ratios of operations: of each one, and of the geometric mean of all."""

    single: float
    mean: float


OF_LEVEL = {"avx512": Limits(1.15, 1.00), "avx2": Limits(1.30, 1.10), "portable": Limits(math.inf, math.inf)}


@dataclass(frozen=True)
class Judged:
    """A measurement: what was measured, the bound that counts, and the limit for it."""

    what: str
    bound: float
    limit: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.bound <= self.limit


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def verdict(judged: Sequence[Judged]) -> Iterator[str]:
    """What falls short, worst first, after how much of it holds."""
    short = sorted((each for each in judged if not each.holds), key=lambda each: each.limit / each.bound)
    yield f"{len(judged) - len(short)} of {len(judged)} hold"
    for each in short:
        yield f"{each.what}: {each.bound:.2f}{each.unit}, above {each.limit:.2f}{each.unit}"
