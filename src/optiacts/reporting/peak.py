"""The most that a training step has allocated at any moment: when that is, and what it is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from optiacts.held.timeline import Piece
from optiacts.reporting.folding import Pairs
from optiacts.reporting.growth import Growth
from optiacts.reporting.optimizers import Cost
from optiacts.reporting.step import BACKWARD, FORWARD, INPUTS, PARAMETERS, Step

OPTIMIZER_STEP = "optimizer step"
STATE, GRADIENTS = "optimizer state", "gradients"
HELD, TEMPORARIES = "held for backward", "temporaries"
PARTS = (PARAMETERS, INPUTS, GRADIENTS, STATE, HELD, TEMPORARIES)
_NAMED = 3  # the largest temporaries
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Peak:
    """The moment of a step with the most bytes allocated, and what is alive then."""

    bytes: int
    phase: str  # forward, backward, optimizer step
    where: str  # the layer that runs, or the op outside of one
    parts: dict[str, int]  # of PARTS; adds up to ``bytes``
    largest: tuple[str, ...]  # the largest temporaries, in words
    unknown: dict[str, str]  # ops whose workspace is not counted, and why
    growth: Growth | None = None  # with the batch, where it is asked for


def peak(step: Step, cost: Cost) -> Peak:
    """The peak of ``step`` with an optimizer of that ``cost``."""
    timeline = step.timeline
    levels = timeline.levels()[timeline.given - 1 :]
    at = max(range(len(levels)), key=levels.__getitem__)
    final = sum(timeline.pieces[piece].nbytes for piece in (*range(timeline.given), *step.gradients))
    if final + cost.temporary > levels[at]:
        parts = _parts(step, [*range(timeline.given), *step.gradients])
        parts[STATE], parts[TEMPORARIES] = cost.state, cost.temporary
        return Peak(sum(parts.values()), OPTIMIZER_STEP, OPTIMIZER_STEP, parts, (), step.not_counted)
    moment = at + timeline.given - 1
    alive = timeline.alive(moment)
    parts = _parts(step, alive)
    parts[STATE] = cost.state
    phase = FORWARD if moment < step.forward_ends else BACKWARD
    return Peak(sum(parts.values()), phase, _place(step, moment), parts, _largest(step, alive), step.not_counted)


def peak_of_deeper(shallow: Step, deeper: Step, pairs: Pairs, more: int, cost: Cost) -> Peak:
    """The peak of a step with ``more`` units than ``shallow``, which has one fewer than ``deeper``.

    Every number grows evenly from unit to unit: bytes, and those in the names of layers.
    """

    def grown(here: float, there: float) -> int:
        return int(here + more * (there - here))

    def words(here: str, there: str) -> str:
        a, b = _NUMBER.split(here), _NUMBER.split(there)
        if a[::2] != b[::2]:
            return there
        return "".join(x if x == y else str(grown(int(x), int(y))) for x, y in zip(a, b, strict=True))

    here, there = shallow.timeline.levels(), deeper.timeline.levels()
    in_order = sorted(pairs, key=lambda pair: grown(*pair))
    levels = [grown(here[i], there[j]) for i, j in in_order]
    at = max(range(len(levels)), key=levels.__getitem__)
    i, j = in_order[at]
    ends = [[*range(step.timeline.given), *step.gradients] for step in (shallow, deeper)]
    final = _parts_of_deeper(shallow, deeper, more, *ends)
    if sum(final.values()) + cost.temporary > levels[at]:
        parts = final | {STATE: cost.state, TEMPORARIES: cost.temporary}
        return Peak(sum(parts.values()), OPTIMIZER_STEP, OPTIMIZER_STEP, parts, (), deeper.not_counted)
    alive = shallow.timeline.alive(i), deeper.timeline.alive(j)
    parts = _parts_of_deeper(shallow, deeper, more, *alive) | {STATE: cost.state}
    phase = FORWARD if i < shallow.forward_ends else BACKWARD
    where = words(_place(shallow, i), _place(deeper, j))
    named = tuple(map(words, _largest(shallow, alive[0]), _largest(deeper, alive[1])))
    return Peak(sum(parts.values()), phase, where, parts, named, deeper.not_counted)


def _parts_of_deeper(shallow: Step, deeper: Step, more: int, here: list[int], there: list[int]) -> dict[str, int]:
    before, after = _parts(shallow, here), _parts(deeper, there)
    return {part: before[part] + more * (after[part] - before[part]) for part in PARTS}


def _place(step: Step, moment: int) -> str:
    last = step.timeline.pieces[step.timeline.events[moment].piece]
    return last.where or last.op


def _largest(step: Step, alive: list[int]) -> tuple[str, ...]:
    named = [step.timeline.pieces[piece] for piece in alive if _part(step, piece) == TEMPORARIES]
    named.sort(key=lambda piece: -piece.nbytes)
    return tuple(_in_words(piece) for piece in named[:_NAMED])


def _parts(step: Step, alive: list[int]) -> dict[str, int]:
    parts = dict.fromkeys(PARTS, 0)
    for piece in alive:
        parts[_part(step, piece)] += step.timeline.pieces[piece].nbytes
    return parts


def _part(step: Step, piece: int) -> str:
    if piece < step.timeline.given:
        return step.timeline.pieces[piece].op  # parameters, inputs
    if piece in step.gradients:
        return GRADIENTS
    return HELD if piece in step.held else TEMPORARIES


def _in_words(piece: Piece) -> str:
    dtype = str(piece.dtype).removeprefix("torch.")
    place = f" in {piece.where}" if piece.where else ""
    return f"{dtype} {list(piece.shape)} by {piece.op.partition('::')[2] or piece.op}{place}"
