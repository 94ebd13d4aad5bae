"""Which backend serves which device of this machine, and why the others do not."""

from __future__ import annotations

import importlib.util
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch

from optiacts import backends, host
from optiacts.backends import native, native_library, notices, selection, triton
from optiacts.backends.all_kinds import prove_all


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
    kernels: tuple[
        str, ...
    ] = ()  # what is known of them: Triton's state, first uses, what this process was warned of

    def __str__(self) -> str:
        lines = [", ".join(f"{name} {version}" for name, version in self.versions.items())]
        for report in self.devices:
            lines.append(f"{report.device}: {report.backend}")
            lines += [f"    not {name}: {reason}" for name, reason in report.not_used.items()]
        if self.cpu:
            lines.append("native CPU kernels")
            lines += [f"    {name}: {value}" for name, value in self.cpu.items()]
        lines += self.kernels
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        return "\n".join(lines)


def doctor(prove: bool = False) -> Diagnosis:
    """Looks at the CPU and at every accelerator that torch sees. Raises nothing: what is wrong is in the result.

    Args:
        prove: also compare every kind of kernel with plain PyTorch operations, as its first use does: takes half a
            minute on a CPU, and on a GPU the time to compile them all.

    Returns:
        ``Diagnosis``: per device the backend in use and the reasons against the faster ones, the versions of
        what matters, the instruction set and threads of the CPU kernels, what is known of the kernels in this
        process (those whose first use showed that they are wrong here among it), and ``problems``.
    """
    from optiacts import __version__

    versions = {"optiacts": __version__, "torch": torch.__version__, "Python": platform.python_version()}
    versions |= {name: found for name in ("triton", "transformers") if (found := _version(name))}
    cpu = torch.device("cpu")
    problems: dict[str, None] = {}  # a set that keeps its order
    devices = tuple(_report(device, problems) for device in (cpu, *_accelerators()))
    if prove and not problems:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", notices.SlowPathWarning)  # the result says it
            for device in (cpu, *_accelerators()):
                prove_all(device)
    details = _native_details() if devices[0].backend == native.name else {}
    return Diagnosis(devices, versions, details, tuple(problems), tuple(_kernels()))


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
    reasons: dict[str, str] = {}
    try:
        serving = selection.fast(device).name
        for backend in backends.BACKENDS:
            if backend.name != serving and (reason := _against(backend, device)) is not None:
                reasons[backend.name] = reason
    except ValueError as error:  # a setting in the environment
        problems[f"{error}; until this is put right, calls on {device} raise it too"] = None
        return DeviceReport(str(device), "none", {native.name if device.type == "cpu" else triton.name: str(error)})
    return DeviceReport(str(device), serving, reasons)


def _against(backend: backends.Backend, device: torch.device) -> str | None:
    forced = selection.wanted()
    if forced is not None:
        return f"{selection.VARIABLE}={forced.name}"
    return backend.unavailable(device)


def _kernels() -> Iterator[str]:
    if importlib.util.find_spec("triton") is not None:
        yield triton.state()
    if selection.found:
        wrong = sum(bool(result.wrong) for result in selection.found.values())
        yield (
            f"compared with plain PyTorch operations in this process: {len(selection.found)} kinds of kernels, "
            + (f"of which {wrong} differ" if wrong else "all right")
        )
    lack = host.lacking()
    yield "small calls are replayed in C" if lack is None else f"small calls are made by Python: {lack}"
    yield from (f"WARNING: {message}" for message in notices.told())


def _native_details() -> dict[str, str]:
    level, best = native_library.level(), native_library.best_level()
    return {
        "instruction set": level if level == best else f"{level} (this machine has {best})",
        "threads": str(torch.get_num_threads())
        if native_library.has_threads()
        else "1 (found no OpenMP runtime of torch)",
        "dtypes": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in native.dtypes)) + "; others: eager",
    }
