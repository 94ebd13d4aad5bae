"""Whether the claims hold on a model, told from its rows alone.

The claims: at no cost in time nobody holds less than OptiActs, and at every amount of memory OptiActs with
checkpointing is faster than checkpointing alone. Two times are level where they differ by no more than the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.frontier.methods import (
    CHECKPOINTING,
    COMPILED,
    EAGER,
    OURS,
    OURS_COMPILED,
    OURS_SELECTIVE,
    PLAIN_COMPILED,
    STAGES,
)
from benchmarks.frontier.rows import Row

OWN = (STAGES, OURS, OURS_SELECTIVE, OURS_COMPILED)
KINDS = ("held", "peak")
_SAME = 0.005  # memory that differs by less is the same
MOST_NOISE = 0.1  # beyond it the times tell nothing


def memory(row: Row, kind: str) -> float:
    found = row.held if kind == "held" else row.peak
    assert found is not None
    return found


def cost(row: Row) -> float:
    assert row.time is not None
    return row.time


def timed(rows: Sequence[Row]) -> list[Row]:
    """Those that take part in comparisons."""
    return [row for row in rows if row.good and row.time is not None]


def eager(rows: Sequence[Row]) -> list[Row]:
    return [row for row in timed(rows) if row.family not in (COMPILED, OURS_COMPILED)]


def compiled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in timed(rows) if row.family in (COMPILED, OURS_COMPILED)]


def front(rows: Sequence[Row], kind: str) -> list[Row]:
    """The rows that no other one beats: none holds less without being slower, and none is faster without more."""

    def beats(other: Row, row: Row) -> bool:
        less = memory(other, kind) < memory(row, kind) * (1 - _SAME)
        no_more = memory(other, kind) <= memory(row, kind) * (1 + _SAME)
        faster = cost(other) * (1 + row.noise) < cost(row)
        no_slower = cost(other) <= cost(row) * (1 + row.noise)
        return (less and no_slower) or (faster and no_more)

    taking_part = timed(rows)
    return [row for row in taking_part if not any(beats(other, row) for other in taking_part)]


@dataclass(frozen=True)
class Free:
    """Of the methods that cost no time over ``base``: the one with the least memory, and OptiActs' best."""

    base: Row
    least: Row
    ours: Row | None
    kind: str

    @property
    def holds(self) -> bool:
        return self.ours is not None and memory(self.ours, self.kind) <= memory(self.least, self.kind) * (1 + _SAME)


def free(rows: Sequence[Row], base: str, kind: str) -> Free | None:
    """None where ``base`` did not run."""
    start = next((row for row in rows if row.method == base and row.good), None)
    if start is None:
        return None
    level = [row for row in timed(rows) if cost(row) <= cost(start) * (1 + start.noise)]
    ours = [row for row in level if row.family in OWN]
    return Free(
        start,
        min(level, key=lambda row: memory(row, kind)),
        min(ours, key=lambda row: memory(row, kind), default=None),
        kind,
    )


@dataclass(frozen=True)
class Duel:
    """At each amount of memory that ``rival`` needs: the fastest of ``ours`` that needs no more, over its time."""

    kind: str
    ratios: tuple[tuple[Row, float | None], ...]  # None where ours needs more
    noise: float

    @property
    def never_slower(self) -> bool:
        return bool(self.ratios) and all(ratio is not None and ratio <= 1 + self.noise for _, ratio in self.ratios)

    @property
    def faster(self) -> int:
        """At so many of them."""
        return sum(ratio is not None and ratio * (1 + self.noise) < 1 for _, ratio in self.ratios)

    @property
    def holds(self) -> bool:
        """Faster at each of them."""
        return bool(self.ratios) and self.faster == len(self.ratios)


def duel(rows: Sequence[Row], rivals: str, ours: str, kind: str) -> Duel:
    """Of two families."""
    taking_part = timed(rows)
    own = [row for row in taking_part if row.family == ours]
    ratios = []
    for rival in (row for row in taking_part if row.family == rivals):
        limit = memory(rival, kind) * (1 + _SAME)
        times = [cost(row) for row in own if memory(row, kind) <= limit]
        ratios.append((rival, min(times) / cost(rival) if times else None))
    return Duel(kind, tuple(ratios), rows[0].noise if rows else 0.0)


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the rows of one model say about the claims; that they say nothing, where the machine was too restless."""
    if rows and rows[0].noise > MOST_NOISE:
        return [f"PyTorch differs from itself by up to {rows[0].noise:.0%}: these times decide nothing."]
    return [
        *_free_sentence(eager(rows), EAGER.name, "Eager, at no cost in time over PyTorch"),
        *_free_sentence(compiled(rows), PLAIN_COMPILED.name, "Compiled, at no cost in time over torch.compile"),
        *_free_sentence(timed(rows), EAGER.name, "Of all, compiled or not, at no cost in time over eager PyTorch"),
        *_duel_sentence(rows, CHECKPOINTING, OURS, "OptiActs + checkpointing against checkpointing alone"),
        *_duel_sentence(rows, COMPILED, OURS_COMPILED, "Compiled with memory budgets, with OptiActs against without"),
    ]


def _free_sentence(rows: list[Row], base: str, beginning: str) -> list[str]:
    parts = []
    for kind in KINDS:
        found = free(rows, base, kind)
        if found is None:
            return []
        verb = "holds" if kind == "held" else "peaks at"
        share = memory(found.least, kind) / memory(found.base, kind)
        if found.holds and found.ours is not None:
            parts.append(f"nobody {_less(kind)} than {_quoted(found.ours)}, which {verb} {share:.0%} of {base}'s")
            continue
        part = f"the claim does not hold: {_quoted(found.least)} {verb} the least, {share:.0%} of {base}'s"
        if found.ours is None:
            part += f"; no OptiActs is within the noise of {found.base.noise:.1%}"
        else:
            part += f"; {_quoted(found.ours)} {memory(found.ours, kind) / memory(found.base, kind):.0%}"
        parts.append(part)
    return [f"{beginning}, {'; '.join(parts)}."]


def _less(kind: str) -> str:
    return "holds less" if kind == "held" else "has a lower peak"


def _quoted(row: Row) -> str:
    return f"“{row.method}”"


def _duel_sentence(rows: Sequence[Row], rivals: str, ours: str, beginning: str) -> list[str]:
    parts = []
    for kind in KINDS:
        found = duel(rows, rivals, ours, kind)
        if not found.ratios:
            return []
        word = "held" if kind == "held" else "peak"
        if found.holds:
            slowest = max(ratio for _, ratio in found.ratios if ratio is not None)
            parts.append(f"faster at every amount of {word} memory, by {1 - slowest:.1%} or more")
            continue
        level = sum(
            ratio is not None and ratio * (1 + found.noise) >= 1 and ratio <= 1 + found.noise
            for _, ratio in found.ratios
        )
        worse = [
            f"{_quoted(row)} ({'which needs less than any of ours' if ratio is None else f'{ratio:.2f}'})"
            for row, ratio in found.ratios
            if ratio is None or ratio > 1 + found.noise
        ]
        part = "never slower" if found.never_slower else "the claim does not hold"
        part += f" by {word} memory: faster at {found.faster} of {len(found.ratios)} amounts, level at {level}"
        parts.append(part + (f", slower than {', '.join(worse)}" if worse else ""))
    return [f"{beginning}: {'; '.join(parts)}."]
