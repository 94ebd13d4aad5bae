"""Which backend serves which device of this machine, and why the others do not."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata

import torch

from optiacts import backends
from optiacts.backends import native, native_library


@dataclass(frozen=True)
class DeviceReport:
    """One device: the backend that serves it, and for each other one the reason why not."""

    device: str
    backend: str  # "none" if every call raises, as a wrong setting makes it do
    not_used: dict[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """The result of ``doctor()``; ``str()`` of it is the printable text."""

    devices: tuple[DeviceReport, ...]
    versions: dict[str, str]
    cpu: dict[str, str]  # how the native kernels run here; empty if they do not
    problems: tuple[str, ...] = ()  # what has to be put right before anything works

    def __str__(self) -> str:
        lines = [", ".join(f"{name} {version}" for name, version in self.versions.items())]
        for report in self.devices:
            lines.append(f"{report.device}: {report.backend}")
            lines += [f"    not {name}: {reason}" for name, reason in report.not_used.items()]
        if self.cpu:
            lines.append("native CPU kernels")
            lines += [f"    {name}: {value}" for name, value in self.cpu.items()]
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        return "\n".join(lines)


def doctor() -> Diagnosis:
    """Looks at the CPU and at every accelerator that torch sees. Raises nothing: what is wrong is in the result.

    Returns:
        ``Diagnosis``: per device the backend in use and the reasons against the faster ones, the versions of
        what matters, the instruction set and threads of the CPU kernels, and ``problems``.
    """
    from optiacts import __version__

    versions = {"optiacts": __version__, "torch": torch.__version__, "Python": platform.python_version()}
    versions |= {name: found for name in ("triton", "transformers") if (found := _version(name))}
    cpu = torch.device("cpu")
    problems: dict[str, None] = {}  # a set that keeps its order
    devices = tuple(_report(device, problems) for device in (cpu, *_accelerators()))
    return Diagnosis(
        devices, versions, _native_details() if devices[0].backend == native.name else {}, tuple(problems)
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _accelerators() -> list[torch.device]:
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return [torch.device(kind.type, index) for index in range(torch.accelerator.device_count())]


def _report(device: torch.device, problems: dict[str, None]) -> DeviceReport:
    reasons: dict[str, str | None] = {}
    for backend in backends.BACKENDS:
        try:
            reasons[backend.name] = backend.unavailable(device)
        except ValueError as error:  # a setting in the environment
            problems[f"{error}; until this is put right, calls on {device} raise it too"] = None
            return DeviceReport(str(device), "none", {backend.name: str(error)})
    serving = next(name for name, reason in reasons.items() if reason is None)
    not_used = {name: reason for name, reason in reasons.items() if reason is not None}
    return DeviceReport(str(device), serving, not_used)


def _native_details() -> dict[str, str]:
    level, best = native_library.level(), native_library.best_level()
    return {
        "instruction set": level if level == best else f"{level} (this machine has {best})",
        "threads": str(torch.get_num_threads())
        if native_library.has_threads()
        else "1 (found no OpenMP runtime of torch)",
        "dtypes": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in native.dtypes)) + "; others: eager",
    }
