"""The figures as rows of a CSV, each with the machine and the versions that it was made with."""

from __future__ import annotations

import csv
import dataclasses
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import optiacts
from benchmarks.frontier.contender import Found, Setting, apart
from benchmarks.frontier.methods import AGAIN, EAGER, PUBLISHED, Method
from benchmarks.frontier.models import Model
from benchmarks.frontier.turns import FailedError, Step
from benchmarks.timing import bound

WRONG, INCOMPARABLE = "wrong gradient", "other masks in each run: its gradient cannot be judged"
# How far apart two methods' losses and gradients may be. A dropout mask drawn anew is some 0.3.
_ROUNDING = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (2e-2, 0.1)}


@dataclass(frozen=True)
class Row:
    """One method on one model. Ratios are to eager PyTorch's steps around each; memory is MiB beyond the weights."""

    model: str
    size: str
    method: str
    family: str
    status: str  # empty, or what is wrong with it: it then takes no part in any comparison
    held: float | None
    peak: float | None
    milliseconds: float | None
    time: float | None  # the median of the ratios
    bound: float | None  # its upper 95 % bound
    noise: float  # how far from 1 the median of PyTorch over PyTorch may be: its 95 % bounds
    rounds: int
    loss: float | None
    gradient_apart: float | None  # from PyTorch's, over its norm; compiled dropouts: from that with budget 1
    device: str
    dtype: str
    threads: int
    torch: str
    python: str
    optiacts: str
    date: str

    @property
    def good(self) -> bool:
        return not self.status and self.method != AGAIN.name


Times = dict[Method, list[Step]]


def rows(model: Model, setting: Setting, found: dict[Method, Found | FailedError], times: Times) -> list[Row]:
    """One for each of ``found``; AssertionError where a loss is not what it must be."""
    made_with = _made_with(model, setting)
    again = _ratios(times[AGAIN]) if AGAIN in times else []
    rounds = min(map(len, times.values()))  # PyTorch's own steps are more
    noise = max(bound(again), bound([1 / ratio for ratio in again])) - 1 if again else 0.0
    result = []
    for method, what in found.items():
        row: dict[str, Any] = {field.name: None for field in dataclasses.fields(Row)} | made_with
        row |= {"method": method.name, "family": method.family, "status": "", "noise": noise, "rounds": rounds}
        if isinstance(what, FailedError):
            row["status"] = str(what)
        else:
            row |= {"held": what.held / 2**20, "peak": what.peak / 2**20, "loss": what.loss}
            row["gradient_apart"], row["status"] = _judged(model, method, found, setting)
            if method in times:
                ratios, milliseconds = _ratios(times[method]), median(step.seconds for step in times[method]) * 1e3
                row |= {"milliseconds": milliseconds, "time": median(ratios), "bound": bound(ratios)}
        result.append(Row(**row))
    return result


def _ratios(steps: list[Step]) -> list[float]:
    return [step.seconds / step.beside for step in steps]


def _judged(
    model: Model, method: Method, found: dict[Method, Found | FailedError], setting: Setting
) -> tuple[float | None, str]:
    """How far the gradient is from what it should be, and what is wrong with it."""
    eager, own = found[EAGER], found[method]
    assert isinstance(eager, Found) and isinstance(own, Found)
    of_losses, of_gradients = _ROUNDING[setting.dtype]
    if method.exact:
        assert own.loss == eager.loss, f"{method.name}: a loss of {own.loss}, PyTorch's is {eager.loss}"
    reference = eager
    if model.random and method.budget is not None:  # compiled dropouts have masks of their own
        near = abs(own.loss / eager.loss - 1) < 0.05
        assert near, f"{method.name}: a loss of {own.loss}, PyTorch's is {eager.loss}"
        all_kept = [found[other] for other in found if other.change == method.change and other.budget == 1.0]
        if method.budget == 1.0:
            return None, ""
        if not all_kept or not isinstance(all_kept[0], Found) or abs(own.loss / all_kept[0].loss - 1) > of_losses:
            return None, INCOMPARABLE
        reference = all_kept[0]
    off = abs(own.loss / reference.loss - 1)
    assert off <= of_losses, f"{method.name}: a loss of {own.loss}, where {reference.loss} was wanted"
    gradient = apart(reference, own)
    if method.family == PUBLISHED or gradient <= of_gradients:
        return gradient, ""
    assert method.budget is not None, f"{method.name}: its gradient is {gradient:.1e} apart from PyTorch's"
    return gradient, WRONG


def _made_with(model: Model, setting: Setting) -> dict[str, Any]:
    return {
        "model": model.name,
        "size": model.words(model.size(setting.device, setting.dry)),
        "device": device_name(setting.device),
        "dtype": str(setting.dtype).removeprefix("torch."),
        "threads": setting.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "optiacts": optiacts.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def device_name(device: str) -> str:
    """The machine, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def write(made: Iterable[Row], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in made:
            writer.writerow({key: _text(value) for key, value in dataclasses.asdict(row).items()})


def read(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8") as stream:
        return [Row(**{key: _value(key, text) for key, text in line.items()}) for line in csv.DictReader(stream)]


_TYPES = {field.name: str(field.type) for field in dataclasses.fields(Row)}


def _value(key: str, text: str) -> Any:
    kind = _TYPES[key]
    if "float" in kind:
        return float(text) if text else None
    return int(text) if kind == "int" else text


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else "" if value is None else str(value)
