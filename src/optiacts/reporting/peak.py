"""The most that a training step has allocated at any moment: when that is, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass

from optiacts.held.timeline import Piece
from optiacts.held.workspaces import unknown
from optiacts.reporting.growth import Growth
from optiacts.reporting.optimizers import Cost
from optiacts.reporting.step import BACKWARD, FORWARD, Step

OPTIMIZER_STEP = "optimizer step"
PARAMETERS, INPUTS, STATE, GRADIENTS = "parameters", "inputs", "optimizer state", "gradients"
HELD, TEMPORARIES = "held for backward", "temporaries"
PARTS = (PARAMETERS, INPUTS, GRADIENTS, STATE, HELD, TEMPORARIES)
_NAMED = 3  # the largest temporaries


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
    not_counted = unknown({piece.op for piece in timeline.pieces})
    if final + cost.temporary > levels[at]:
        parts = _parts(step, [*range(timeline.given), *step.gradients])
        parts[STATE], parts[TEMPORARIES] = cost.state, cost.temporary
        return Peak(sum(parts.values()), OPTIMIZER_STEP, OPTIMIZER_STEP, parts, (), not_counted)
    moment = at + timeline.given - 1
    alive = timeline.alive(moment)
    parts = _parts(step, alive)
    parts[STATE] = cost.state
    last = timeline.pieces[timeline.events[moment].piece]
    phase = FORWARD if moment < step.forward_ends else BACKWARD
    named = [timeline.pieces[piece] for piece in alive if _part(step, piece) == TEMPORARIES]
    named.sort(key=lambda piece: -piece.nbytes)
    words = tuple(_in_words(piece) for piece in named[:_NAMED])
    return Peak(sum(parts.values()), phase, last.where or last.op, parts, words, not_counted)


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
