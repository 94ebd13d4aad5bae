"""What people choose from to make a training fit, and what each choice takes: the peak, the batch, the arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from optiacts.held.timeline import envelope
from optiacts.reporting import conversion
from optiacts.reporting.changes import checkpointed, chunked_loss, layers_of
from optiacts.reporting.folding import FEW, MORE, Pairs, aligned, shortened, stack_of, with_larger_batch
from optiacts.reporting.growth import Growth
from optiacts.reporting.lora import Lora, linears, set_train_mode, targets_in
from optiacts.reporting.optimizers import Cost, cost
from optiacts.reporting.step import Step

Run = Callable[[torch.nn.Module, Callable[..., Any], int], Step]
"""A step of a model, by the forward of its inputs that is given, with so many times as large a batch."""

_TRIES = 3


@dataclass(frozen=True)
class Choice:
    """One way to train."""

    optimizer: str
    train_mode: str = ""  # as it is; else lora or qlora
    dropout: float = 0.0  # of the adapters
    optiacts: bool = False
    chunked: bool = False  # the loss
    checkpoints: int = 0  # of the layers, from the first on

    @property
    def words(self) -> str:
        """What is changed."""
        parts = [{"lora": "LoRA", "qlora": "QLoRA"}.get(self.train_mode, "")]
        parts[0] += f" with dropout {self.dropout}" if self.dropout else ""
        parts += ["OptiActs"] if self.optiacts else []
        parts += ["linear_cross_entropy"] if self.chunked else []
        parts += ["checkpointing"] if self.checkpoints else []
        parts += ["8-bit optimizer"] if self.optimizer == "adamw-8bit" else []
        return " + ".join(part for part in parts if part) or "now"


@dataclass(frozen=True)
class Option:
    """A choice and what it takes.

    ``more_work``: floating-point operations of products and attention in a step, against the same without
    checkpointing; None where nothing is checkpointed.
    """

    choice: Choice
    growth: Growth
    more_work: float | None
    layers: int  # that could be checkpointed

    @property
    def peak(self) -> float:
        """The bytes at the peak of a step."""
        return self.growth.here

    def largest_batch(self, memory: int) -> int:
        """The most samples that fit."""
        return self.growth.largest(memory)


class _Ran(NamedTuple):
    steps: list[Step]
    trained: list[torch.nn.Parameter]


class Choices:
    """Runs choices on a fake model, which is as it was afterwards.

    Args:
        model, args, keywords: the model, and its inputs.
        batch: the samples in them.
        run: one step of it.
        sites: what conversion goes by.
        optimizer, like_cuda: as in the report.
        lora: the adapters of LoRA and QLoRA.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        batch: int,
        run: Run,
        sites: tuple[Any, ...],
        optimizer: str,
        like_cuda: bool,
        mode: FakeTensorMode,
        again: Callable[[], AbstractContextManager[Any]] = nullcontext,
        fold: bool = True,
        lora: Lora | None = None,
    ) -> None:
        self._model, self._args, self._keywords = model, args, keywords
        self._batch, self._run, self._sites = batch, run, sites
        self._optimizer, self._like_cuda, self._mode, self._again = optimizer, like_cuda, mode, again
        self.fold = fold
        self._lora = lora or Lora()
        self.layers = len(layers_of(model))
        self._stack = stack_of(model)
        self._ran: dict[tuple[Choice, tuple[int | None, ...], tuple[int, ...]], list[_Ran]] = {}

    def all(self) -> list[Choice]:
        """From what costs nothing to what changes the training, as far as the model has it.

        ``ValueError`` where it has not what the adapters are for.
        """
        plain = Choice(self._optimizer)
        ours, every = replace(plain, optiacts=True), self.layers
        found = [plain, ours]
        chunks = not self._args and chunked_loss(self._model, self._keywords) is not None
        if chunks:
            found += [replace(plain, chunked=True), replace(ours, chunked=True)]
        most = replace(ours, chunked=chunks)
        if every:
            found += [replace(plain, checkpoints=every), replace(ours, checkpoints=every)]
            most = replace(most, checkpoints=every)
            found += [most] if chunks else []
        if self._optimizer.startswith("adamw") and self._optimizer != "adamw-8bit":
            found += [replace(one, optimizer="adamw-8bit") for one in (plain, ours, most)]
        trained = all(p.requires_grad for p in self._model.parameters())
        possible = trained and every > 0 and any(linears(self._model))
        if possible or (trained and self._lora != Lora()):
            targets_in(self._model, self._lora)
        if possible:
            for mode in ("lora", "qlora"):
                adapters = replace(plain, train_mode=mode)
                found += [adapters, replace(adapters, optiacts=True)]
                if mode == "lora":
                    found.append(replace(adapters, optiacts=True, dropout=self._lora.dropout or 0.1))
                found.append(replace(most, train_mode=mode))
        return found

    def option(self, choice: Choice) -> Option:
        """Runs it: with the batch that there is, and with two larger ones for its growth."""
        times = (1, 2) if self._batch > 1 else (1, 2, 4)
        levels, work, again = self._levels(choice, times)
        batches = [self._batch * n for n in times]
        lines = envelope(levels[-2], levels[-1], batches[-2], batches[-1])
        more = work / (work - again) - 1 if choice.checkpoints and work > again else None
        return Option(choice, Growth(self._batch, max(levels[0]), lines), more, self.layers)

    def peak(self, choice: Choice) -> int:
        """The bytes at its peak, and nothing else."""
        return max(self._levels(choice, (1,))[0][0])

    def _levels(self, choice: Choice, times: tuple[int, ...]) -> tuple[list[list[int]], float, float]:
        """The levels of a step with so many times the batch each.

        And the floating-point operations of the first: all, and those that are done again.
        """
        stack = self._stack if self.fold else None
        if stack is None or 0 < choice.checkpoints < self.layers:
            ((steps, spent),) = self._steps(choice, (None,), times)
            levels = [_levels(step, spent) for step in steps]
            work, again = steps[0].timeline.work, steps[0].timeline.again
        else:
            (shallow, few), (deeper, many) = self._steps(choice, (FEW, MORE), times)
            more = stack.units - FEW
            last = aligned(shallow[-1], deeper[-1])
            pairs = [last] * len(times)
            if len(times) > 2:  # one sample alone takes another course
                pairs[0] = aligned(shallow[0], deeper[0])
            levels = [
                _extrapolated(a, b, few, many, found, more)
                for a, b, found in zip(shallow, deeper, pairs, strict=True)
            ]
            work, again = (
                here + more * (there - here)
                for here, there in (
                    (shallow[0].timeline.work, deeper[0].timeline.work),
                    (shallow[0].timeline.again, deeper[0].timeline.again),
                )
            )
        return levels, work, again

    def plain(self, optiacts: bool, checkpoints: int = 0) -> Choice:
        """Nothing else changed."""
        return Choice(self._optimizer, optiacts=optiacts, checkpoints=checkpoints)

    def fewest_checkpoints(self, none: Option, every: Option, memory: int) -> Option | None:
        """With so many layers checkpointed, from the first on, that it fits; None if only all of them do.

        Between none and every layer the peak falls about evenly, which is where to look; what is found was run.
        """
        span = none.peak - every.peak
        first = int(self.layers * (none.peak - memory) / span) + 1 if span > 0 else self.layers
        for layers in range(max(first, 1), min(first + _TRIES, self.layers)):
            found = replace(none.choice, checkpoints=layers)
            if self.peak(found) <= memory:
                return self.option(found)
        return None

    def _steps(
        self, choice: Choice, depths: tuple[int | None, ...], times: tuple[int, ...]
    ) -> list[tuple[list[Step], Cost]]:
        """For so many units, the deepest last: steps with so many times the batch, and what the optimizer takes."""
        key = replace(choice, optimizer=""), depths, times  # which it comes after
        if key not in self._ran:
            self._ran[key] = self._run_all(choice, depths, times)
        return [(ran.steps, cost(ran.trained, choice.optimizer, self._like_cuda)) for ran in self._ran[key]]

    def _run_all(self, choice: Choice, depths: tuple[int | None, ...], times: tuple[int, ...]) -> list[_Ran]:
        stack = self._stack

        def cut(model: torch.nn.Module, units: int | None) -> AbstractContextManager[None]:
            return shortened(model, stack, units) if stack is not None and units else nullcontext()

        with cut(self._model, depths[-1]):
            model = self._model
            if choice.train_mode:
                with self._mode, FakeCopyMode(self._mode):
                    model = copy.deepcopy(model)
                with self._mode:
                    set_train_mode(model, choice.train_mode, replace(self._lora, dropout=choice.dropout))
            try:
                if choice.optiacts:
                    last = list(conversion.CONVERSIONS)[-2]
                    conversion.convert_stage(model, last, () if choice.train_mode else self._sites)
                found: list[_Ran] = []
                for units in depths:
                    with cut(model, units), checkpointed(layers_of(model)[: choice.checkpoints], self._again):
                        trained = [p for p in model.parameters() if p.requires_grad]
                        fewer = found[-1].steps if found else []
                        found.append(_Ran(self._with_batches(model, choice, times, fewer), trained))
            finally:
                if choice.optiacts:
                    conversion.revert(model)
        return found

    def _with_batches(
        self, model: torch.nn.Module, choice: Choice, times: tuple[int, ...], fewer: list[Step]
    ) -> list[Step]:
        """A step with so many times the batch each; the last is told from those of fewer units where it can be."""
        steps = [self._stepped(model, choice, n) for n in times[:-1]]
        told = with_larger_batch(steps[-1], *fewer[-2:]) if steps and fewer else None
        steps.append(told or self._stepped(model, choice, times[-1]))
        if len(steps) > 1 and not steps[-2].timeline.same_course(steps[-1].timeline):
            raise ValueError("a larger batch takes another course")
        return steps

    def _stepped(self, model: torch.nn.Module, choice: Choice, times: int) -> Step:
        def forward(args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            loss = chunked_loss(model, keywords) if choice.chunked else None
            return model(*args, **keywords) if loss is None else loss()

        return self._run(model, forward, times)


def _levels(step: Step, spent: Cost) -> list[int]:
    levels = step.timeline.levels()[step.timeline.given - 1 :]
    return [level + spent.state for level in (*levels, _final(step) + spent.temporary)]


def _final(step: Step) -> int:
    """When the optimizer begins."""
    pieces = step.timeline.pieces
    return sum(pieces[piece].nbytes for piece in (*range(step.timeline.given), *step.gradients))


def _extrapolated(shallow: Step, deeper: Step, few: Cost, many: Cost, pairs: Pairs, more: int) -> list[int]:
    """The levels of a step with ``more`` units than ``shallow``, which has one fewer than ``deeper``."""
    here, there = shallow.timeline.levels(), deeper.timeline.levels()
    ends = (_final(shallow) + few.temporary, _final(deeper) + many.temporary)
    state = few.state + more * (many.state - few.state)
    return [a + more * (b - a) + state for a, b in (*((here[i], there[j]) for i, j in pairs), ends)]
