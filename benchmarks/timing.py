"""Alternating measurements in one process: only ratios within a run mean anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of one contender, in the order they were measured."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """The least: what the machine does when nobody else uses it."""
        return min(self.seconds)


def alternate(contenders: dict[str, Callable[[], object]], budget: float) -> dict[str, Times]:
    """Runs the contenders in turn, A B C A B C ..., for about ``budget`` seconds in all, at least 7 rounds."""
    for run in contenders.values():
        for _ in range(3):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + budget
    rounds = 0
    while rounds < 7 or time.perf_counter() < end:
        for name, run in contenders.items():
            start = time.perf_counter()
            result = run()
            seconds[name].append(time.perf_counter() - start)
            del result  # frees the memory outside the measurement, for all alike
        rounds += 1
    return {name: Times(tuple(values)) for name, values in seconds.items()}


@dataclass(frozen=True)
class Pairs:
    """Seconds of ours and of theirs, pair by pair of neighbours."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def more(self) -> list[float]:
        """By how many seconds ours take longer."""
        return [a - b for a, b in zip(self.ours, self.theirs, strict=True)]


def in_pairs(ours: Callable[[], object], theirs: Callable[[], object], budget: float, least: int) -> Pairs:
    """Both in turn, A B B A ..., for about ``budget`` seconds and at least so many pairs.

    What takes less than a millisecond is run several times in each turn, since a clock has its own price.
    """
    for _ in range(3):
        ours(), theirs()
    start = time.perf_counter()
    theirs()
    times = max(1, round(1e-3 / (time.perf_counter() - start)))

    def turn(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - start) / times

    a: list[float] = []
    b: list[float] = []
    end = time.perf_counter() + budget
    while len(a) < least or time.perf_counter() < end:
        if len(a) % 2:
            b.append(turn(theirs))
            a.append(turn(ours))
        else:
            a.append(turn(ours))
            b.append(turn(theirs))
    return Pairs(tuple(a), tuple(b))


def copy_bandwidth(elements: int, dtype: torch.dtype) -> float:
    """Bytes per second, read plus written, of copying a tensor of that size into memory that is there already."""
    source = torch.ones(elements, dtype=dtype)
    target = torch.empty_like(source)
    times = alternate({"copy": lambda: target.copy_(source)}, budget=0.3)
    return 2 * source.nbytes / times["copy"].best


def there_and_back(losses: dict[str, Callable[[], torch.Tensor]], pairs: int) -> dict[str, list[float]]:
    """CPU seconds of each loss and its backward, A B B A ..., which two of them compare pair by pair."""
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(pairs):
        for name in list(losses)[:: -1 if number % 2 else 1]:
            start = time.process_time()
            losses[name]().backward()
            seconds[name].append(time.process_time() - start)
    return seconds


def bound(ratios: list[float]) -> float:
    """The upper 95 % bound of the median: an order statistic."""
    ordered = sorted(ratios)
    place = int(len(ordered) / 2 + 0.98 * len(ordered) ** 0.5)
    return ordered[min(place, len(ordered) - 1)]
