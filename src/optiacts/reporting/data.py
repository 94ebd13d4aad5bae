"""The report as data: what ``optiacts.report`` returns, ``--json`` prints and the table and the picture show."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from optiacts.held.sharing import ActivationSite
from optiacts.reporting.choices import Option
from optiacts.reporting.errors import ReportError
from optiacts.reporting.peak import Peak
from optiacts.reporting.sizes import memory_of
from optiacts.reporting.states import States
from optiacts.reporting.verdict import Verdict, verdict, verdict_alone


@dataclass(frozen=True)
class Stage:
    """What autograd holds after a forward at one stage of conversion, in bytes."""

    name: str
    bytes: int
    kinds: dict[str, int]  # by what it is for; adds up to ``bytes``
    layers: dict[str, int]  # by the class of the layer that holds it; adds up to ``bytes``
    batch: int | None  # the samples in this forward
    peak: Peak | None  # of the whole step; None if it ran on real tensors


@dataclass(frozen=True)
class Measured:
    """A real step on a GPU, in bytes: what a forward left allocated, and the most of the whole step."""

    stage: str
    after_forward: int
    peak: int


@dataclass(frozen=True)
class MemoryReport:
    """How much memory a training step holds, now and after conversion."""

    name: str
    setting: dict[str, str]
    states: States
    stages: tuple[Stage, ...]  # "now", and those of reporting.conversion that the model has something for
    sites: tuple[ActivationSite, ...]
    gpu_memory: int | None = None
    measured: tuple[Measured, ...] = field(default=())
    options: tuple[Option, ...] = field(default=())  # what people choose from, from the cheapest on
    partial: tuple[Option, ...] = field(default=())  # with some layers checkpointed, for ``gpu_memory``
    longest: int | None = None  # tokens that fit ``gpu_memory``, where one sample does not

    @property
    def now(self) -> Stage:
        """Before conversion."""
        return self.stages[0]

    def change(self, stage: Stage) -> float:
        """The relative change of the saved bytes against now: -0.25 is a quarter less."""
        return stage.bytes / self.now.bytes - 1 if self.now.bytes else 0.0

    def largest_batch(self, stage: Stage) -> int | None:
        """The most samples with which the peak of a step fits ``gpu_memory``; None if not known."""
        if self.gpu_memory is None or stage.peak is None or stage.peak.growth is None:
            return None
        return stage.peak.growth.largest(self.gpu_memory)

    def fits(self, memory: int | float | str | None = None) -> Verdict:
        """Whether a step fits ``memory``, such as "24GB" or "rtx-4090"; ``gpu_memory`` if left out.

        True if it fits as it is; ``str`` of it says in words what fits, or the smallest change that makes it fit, of
        those in ``options``: ``report(..., choices=True)`` has them. Without, it is said of the stages alone.
        ``ReportError`` where the peak is not known.
        """
        size = self.gpu_memory if memory is None else memory_of(memory)
        if size is None:
            raise ReportError('fits: say what it should fit, such as "24GB"')
        if not self.options:
            if self.now.peak is None:
                raise ReportError("fits: the peak is not known; make the report on fake tensors and with peak=True")
            peaks = [stage.peak.bytes for stage in self.stages[1:] if stage.peak is not None]
            return verdict_alone(self.now.peak.bytes, min(peaks, default=None), size)
        own = size == self.gpu_memory
        return verdict(self.options, size, self.partial if own else (), self.longest if own else None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it; sizes in bytes."""
        data = asdict(self)
        data["sites"] = [
            asdict(site) | {"gain": site.gain, "pays": site.pays, "reason": site.reason} for site in self.sites
        ]
        for stage, entry in zip(self.stages, data["stages"], strict=True):
            entry |= {"change": self.change(stage), "largest_batch": self.largest_batch(stage)}
        for option, entry in zip(self.options, data["options"], strict=True):
            entry |= {"words": option.choice.words, "peak": option.peak}
        if self.gpu_memory is not None and self.now.peak is not None:
            data["verdict"] = self.fits().words
        return data

    def __str__(self) -> str:
        from optiacts.reporting.table import markdown

        return markdown(self)
