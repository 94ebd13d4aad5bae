"""The stages that a report compares: the model as it is, and after each stage of conversion."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch

from optiacts.conversion import ConversionReport
from optiacts.held.sharing import ActivationSite
from optiacts.reporting import conversion
from optiacts.reporting.conversion import CONVERSIONS
from optiacts.reporting.data import Stage
from optiacts.reporting.errors import ReportError
from optiacts.reporting.folding import FEW, MORE, Stack, aligned, evenly, shortened, stack_of
from optiacts.reporting.optimizers import Cost
from optiacts.reporting.peak import Peak, peak, peak_of_deeper
from optiacts.reporting.progress import Progress
from optiacts.reporting.running import Ran, Runner
from optiacts.reporting.step import Step

NOW = "now"
_DEEP = 2 * (FEW + MORE)  # layers: below that, running all of them is as little work

Sites = tuple[ActivationSite, ...]


class _Told(NamedTuple):
    """A stage as a few units of the stack tell it, what they did, and how many more units there are."""

    stage: Stage
    shallow: Step | None
    deeper: Step | None
    more: int

    def agrees(self, whole: Ran) -> bool:
        """With a forward of the whole model."""
        if (whole.kinds, whole.layers) != (self.stage.kinds, self.stage.layers):
            return False
        if whole.step is None or self.shallow is None or self.deeper is None:
            return True
        return evenly(self.shallow, self.deeper, whole.step, self.more)


class Stages:
    """Runs the stages of ``model``, which is as it was afterwards.

    A deep stack of equal layers is told from two and three units of it. Where that is not what forwards of the whole
    model do and hold, as it is and after the last stage, every stage is run whole.

    Args:
        run: runs the model as it stands.
        cost: of its optimizer.
        autocast: whether it runs under autocast.
        fold: whether to fold.
    """

    def __init__(self, model: torch.nn.Module, run: Runner, cost: Cost, autocast: bool, fold: bool) -> None:
        self._model, self._run, self._cost, self._autocast = model, run, cost, autocast
        stack = stack_of(model) if fold else None
        self._stack = stack if stack is not None and len(stack.layers) >= _DEEP * stack.period else None
        self._done: ConversionReport | None = None

    def all(self, say: Progress) -> tuple[list[Stage], Sites]:
        """The stages that there are, and the activations of the model as it is."""
        try:
            say("tracing the model as it is", 0.0)
            ran, traced = self._run.ran(backward=self._stack is None)
            sites = self._run.sites(traced)
            asked = [name for name, how in CONVERSIONS.items() if how.shows(ran.kinds, self._autocast)]
            stages = None if self._stack is None else self._folded(self._stack, ran, sites, asked, say)
            return stages or self._whole(ran if self._stack is None else None, sites, asked, say), sites
        finally:
            conversion.revert(self._model)

    def _whole(self, now: Ran | None, sites: Sites, asked: list[str], say: Progress) -> list[Stage]:
        conversion.revert(self._model)
        stages = [self._stage(NOW, now or self._run.ran()[0])]
        for number, name in enumerate(asked, 1):
            say(f"tracing it with its {name}", number / (1 + len(asked)))
            if self._convert(name, sites):
                _append(stages, self._stage(name, self._run.ran()[0]))
        return stages

    def _folded(self, stack: Stack, whole: Ran, sites: Sites, asked: list[str], say: Progress) -> list[Stage] | None:
        """The same, of a few layers; None where that does not tell what the whole model does."""
        try:
            last = self._told(stack, NOW)
            stages = [last.stage]
            if not last.agrees(whole):
                return None
            for number, name in enumerate(asked, 1):
                say(f"tracing it with its {name}", 0.3 + 0.4 * number / len(asked))
                with shortened(self._model, stack, MORE):
                    more_to_show = self._convert(name, sites)
                if more_to_show:
                    told = self._told(stack, name)
                    last = told if _append(stages, told.stage) else last
        except ReportError:  # it does not run with so few layers
            return None
        if len(stages) > 1:
            say(f"tracing all of it with its {last.stage.name}", 0.7)
            self._convert(last.stage.name, sites)
            if not last.agrees(self._run.ran(backward=False)[0]):
                return None
        return stages

    def _convert(self, name: str, sites: Sites) -> bool:
        """Converts the model; whether there is anything else to show than after the stage before."""
        before, self._done = self._done, conversion.convert_stage(self._model, name, sites)
        return not CONVERSIONS[name].only_if_less or self._done != before

    def _told(self, stack: Stack, name: str) -> _Told:
        with shortened(self._model, stack, FEW):
            shallow, _ = self._run.ran()
        with shortened(self._model, stack, MORE):
            deeper, _ = self._run.ran()
        more = stack.units - FEW
        held, layers = (
            Counter({key: a[key] + more * (b[key] - a[key]) for key in b})
            for a, b in ((shallow.kinds, deeper.kinds), (shallow.layers, deeper.layers))
        )
        found: Peak | None = None
        if shallow.step is not None and deeper.step is not None:
            pairs = aligned(shallow.step, deeper.step)
            found = peak_of_deeper(shallow.step, deeper.step, pairs, more, self._cost)
        return _Told(self._made(name, held, layers, found), shallow.step, deeper.step, more)

    def _stage(self, name: str, ran: Ran) -> Stage:
        return self._made(name, ran.kinds, ran.layers, None if ran.step is None else peak(ran.step, self._cost))

    def _made(self, name: str, held: Counter[str], layers: Counter[str], found: Peak | None) -> Stage:
        return Stage(name, held.total(), dict(held), dict(layers.most_common()), self._run.batch, found)


def _append(stages: list[Stage], stage: Stage) -> bool:
    shown = not (CONVERSIONS[stage.name].only_if_less and stage.bytes >= stages[-1].bytes)
    stages += [stage] if shown else []
    return shown
