"""The stages that a report compares: the model as it is, and after each stage of conversion."""

from __future__ import annotations

from collections import Counter

import torch

from optiacts.held.sharing import ActivationSite
from optiacts.reporting import conversion
from optiacts.reporting.conversion import CONVERSIONS
from optiacts.reporting.data import Stage
from optiacts.reporting.errors import ReportError
from optiacts.reporting.folding import FEW, MORE, Stack, aligned, shortened, stack_of
from optiacts.reporting.optimizers import Cost
from optiacts.reporting.peak import Peak, peak, peak_of_deeper
from optiacts.reporting.progress import Progress
from optiacts.reporting.running import Ran, Runner

NOW = "now"


class Stages:
    """Runs the stages of ``model``, which is as it was afterwards.

    A deep stack of equal layers is run whole as it is. The other stages, and again the model as it is, are told from
    two and three units of it. Where that differs from what the whole did, or from what a forward of the whole model
    holds after the last stage, every stage is run whole.

    Args:
        run: runs the model as it stands.
        cost: of its optimizer.
        autocast: whether it runs under autocast.
        fold: whether to fold.
    """

    def __init__(self, model: torch.nn.Module, run: Runner, cost: Cost, autocast: bool, fold: bool) -> None:
        self._model, self._run, self._cost, self._autocast = model, run, cost, autocast
        self._stack = stack_of(model) if fold else None

    def all(self, say: Progress) -> tuple[list[Stage], tuple[ActivationSite, ...]]:
        """The stages that there are, and the activations of the model as it is."""
        say("tracing the model as it is", 0.0)
        ran, traced = self._run.ran()
        now, sites = self._stage(NOW, ran), self._run.sites(traced)
        asked = [name for name, how in CONVERSIONS.items() if how.shows(now.kinds, self._autocast)]
        stages = self._folded(now, sites, asked, say)
        if stages is None:
            stages = [now]
            for number, name in enumerate(asked, 1):
                say(f"tracing it with its {name}", number / (1 + len(asked)))
                _append(stages, self._stage(name, self._ran(name, sites)))
        return stages, sites

    def _folded(
        self, now: Stage, sites: tuple[ActivationSite, ...], asked: list[str], say: Progress
    ) -> list[Stage] | None:
        """The same, of a few layers; None where that is no less work, or does not tell what the whole model does."""
        stack = self._stack
        if stack is None or not asked:
            return None
        few = (FEW + MORE) * stack.period * (1 + len(asked)) + len(stack.layers)
        if few >= len(stack.layers) * len(asked):
            return None
        try:
            if self._extrapolated(stack, NOW, sites) != now:
                return None
            stages = [now]
            for number, name in enumerate(asked, 1):
                say(f"tracing it with its {name}", 0.4 + 0.3 * number / len(asked))
                _append(stages, self._extrapolated(stack, name, sites))
        except ReportError:  # it does not run with so few layers
            return None
        last = stages[-1]
        say(f"tracing all of it with its {last.name}", 0.7)
        whole = self._ran(last.name, sites, peaks=False)
        return stages if (whole.kinds, whole.layers) == (last.kinds, last.layers) else None

    def _extrapolated(self, stack: Stack, name: str, sites: tuple[ActivationSite, ...]) -> Stage:
        with shortened(self._model, stack, FEW):
            shallow = self._ran(name, sites)
        with shortened(self._model, stack, MORE):
            deeper = self._ran(name, sites)
        more = stack.units - FEW
        held, layers = (
            Counter({key: a[key] + more * (b[key] - a[key]) for key in b})
            for a, b in ((shallow.kinds, deeper.kinds), (shallow.layers, deeper.layers))
        )
        found: Peak | None = None
        if shallow.step is not None and deeper.step is not None:
            pairs = aligned(shallow.step, deeper.step)
            found = peak_of_deeper(shallow.step, deeper.step, pairs, more, self._cost)
        return self._made(name, held, layers, found)

    def _ran(self, name: str, sites: tuple[ActivationSite, ...], peaks: bool = True) -> Ran:
        """The model as it stands, converted."""
        try:
            if name in CONVERSIONS:
                conversion.convert_stage(self._model, name, sites)
            return self._run.ran(peaks)[0]
        finally:
            conversion.revert(self._model)

    def _stage(self, name: str, ran: Ran) -> Stage:
        return self._made(name, ran.kinds, ran.layers, None if ran.step is None else peak(ran.step, self._cost))

    def _made(self, name: str, held: Counter[str], layers: Counter[str], found: Peak | None) -> Stage:
        return Stage(name, held.total(), dict(held), dict(layers.most_common()), self._run.batch, found)


def _append(stages: list[Stage], stage: Stage) -> None:
    if not (CONVERSIONS[stage.name].only_if_less and stage.bytes >= stages[-1].bytes):
        stages.append(stage)
