"""Deep models from shallow ones: a stack of equal layers is run with two and three of them, which tells any depth.

Every moment of a step is so many bytes, and so many more for each further layer in the middle of the stack. What is
told so is compared with forwards of the whole model, and not used where they differ (``reporting.stages``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from optiacts.reporting.step import INPUTS, Step

FEW, MORE = 2, 3  # units that are run
LEAST = FEW + MORE  # units: fewer are run as they are
_LONGEST_PERIOD = 6  # layers, such as five with a sliding window and one without


class Stack(NamedTuple):
    """The repeated layers of a model: where they are, and how many of them make a unit that repeats."""

    path: str  # of the module that has them
    name: str
    layers: torch.nn.ModuleList
    period: int

    @property
    def units(self) -> int:
        """How often the unit repeats."""
        return len(self.layers) // self.period


def stack_of(model: torch.nn.Module) -> Stack | None:
    """The one stack of equal layers in ``model``; None if there is none, or more than one."""
    found = [
        (path, name, child)
        for path, module in model.named_modules()
        for name, child in module.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) >= LEAST
    ]
    if len(found) != 1:
        return None
    path, name, layers = found[0]
    forms = [_form(layer) for layer in layers]
    for period in range(1, _LONGEST_PERIOD + 1):
        repeats = len(forms) % period == 0 and len(forms) // period >= LEAST
        if repeats and all(forms[i] == forms[i - period] for i in range(period, len(forms))):
            return Stack(path, name, layers, period)
    return None


def _form(layer: torch.nn.Module) -> Any:
    """What makes a layer equal to another: classes, sizes and plain attributes; not its number in the stack."""
    tensors = [
        (name, tuple(t.shape), t.dtype, t.requires_grad)
        for name, t in (*layer.named_parameters(), *layer.named_buffers())
    ]
    plain = [
        (path, type(module), key, value)
        for path, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, type(None))) and key not in ("layer_idx", "layer_id")
    ]
    return tensors, plain


@contextmanager
def shortened(model: torch.nn.Module, stack: Stack, units: int) -> Iterator[None]:
    """``model``, which has ``stack``, with the first ``units`` of it alone."""
    parent = model.get_submodule(stack.path)
    before = getattr(parent, stack.name)
    setattr(parent, stack.name, torch.nn.ModuleList(list(before)[: units * stack.period]))
    try:
        yield
    finally:
        setattr(parent, stack.name, before)


Pairs = list[tuple[int, int]]


def aligned(step: Step, deeper: Step) -> Pairs:
    """The moments of ``step`` and those of ``deeper`` that are the same but for a further layer in the middle.

    They are counted from the beginnings and from the ends of forward and backward, as far as the ops are the same.
    """
    pairs: Pairs = []
    given, more_given = step.timeline.given, deeper.timeline.given
    phases = (
        (range(given - 1, step.forward_ends), range(more_given - 1, deeper.forward_ends)),
        (
            range(step.forward_ends, len(step.timeline.events)),
            range(deeper.forward_ends, len(deeper.timeline.events)),
        ),
    )
    for here, there in phases:
        for forwards in (1, -1):
            for a, b in zip(here[::forwards], there[::forwards], strict=False):
                if _what(step, a) != _what(deeper, b):
                    break
                pairs.append((a, b))
    return pairs


def with_larger_batch(deeper: Step, step: Step, larger: Step) -> Step | None:
    """``deeper`` with the batch of ``larger``, told from ``step``, which is ``larger`` with the batch of ``deeper``.

    A storage that is made where one of ``step`` is made, and is as large, grows as that one does. None where not
    every storage has such a one.
    """
    before, after, pieces = step.timeline.pieces, larger.timeline.pieces, deeper.timeline.pieces
    pairs = [(step.timeline.events[a].piece, deeper.timeline.events[b].piece) for a, b in aligned(step, deeper)]
    given, more_given = step.timeline.given, deeper.timeline.given
    pairs += [(given - n, more_given - n) for n in range(1, given + 1) if before[given - n].op == INPUTS]
    sizes = {number: piece.nbytes for number, piece in enumerate(pieces[:more_given]) if piece.op != INPUTS}
    for here, there in pairs:
        alike = before[here].nbytes == pieces[there].nbytes
        if alike and sizes.setdefault(there, after[here].nbytes) != after[here].nbytes:
            return None
    if len(sizes) < len(pieces):
        return None
    grown = [replace(piece, nbytes=sizes[number]) for number, piece in enumerate(pieces)]
    return replace(deeper, timeline=replace(deeper.timeline, pieces=grown))


def evenly(shallow: Step, deeper: Step, whole: Step, more: int) -> bool:
    """Whether the forward of ``whole`` did what those of a few units tell: as many changes, up to as many bytes.

    Its backward is autograd's, of the same ops.
    """
    pairs = [(a, b) for a, b in aligned(shallow, deeper) if a < shallow.forward_ends and b < deeper.forward_ends]
    here, there = shallow.timeline.levels(), deeper.timeline.levels()
    told = max(here[a] + more * (there[b] - here[a]) for a, b in pairs)
    levels = whole.timeline.levels()[whole.timeline.given - 1 : whole.forward_ends]
    few, many, all_of_them = (step.forward_ends - step.timeline.given for step in (shallow, deeper, whole))
    return told == max(levels) and all_of_them == few + more * (many - few)


def _what(step: Step, moment: int) -> tuple[str, int]:
    piece, change = step.timeline.events[moment]
    return step.timeline.pieces[piece].op, change
