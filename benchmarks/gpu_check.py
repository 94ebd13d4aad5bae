"""Everything that only a GPU can show about the Triton backend, in one command: first whether it is right (the tests
in tests/gpu), then how fast it is.

    make gpu-check                            or: PYTHONPATH=src python benchmarks/gpu_check.py
    ... --checks                              correctness alone
    ... --only gated streams                  these tests (as with pytest's -k) and figures alone
    ... --only kernels frontier               names of figures: no tests
    ... --sweep                               also other tile sizes
    ... --dry                                 on a CPU, with Triton's interpreter and tiny sizes

Needs torch, triton, pytest and a GPU; the figures of `models` also what optiacts[report] needs, and 80 GB of GPU
memory. Without pytest only the figures are taken, and the check has failed.
Writes benchmarks/results/gpu_check_<device>.json and .md (a dry run only with --output), after each part, and exits
with 1 if a test failed. What the file has of earlier runs stays, with its date, until it is taken again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
Report = dict[str, Any]
MOST_PROCESSES = 12  # that test at once, on three cores of four: some need 20 GB of GPU memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checks", action="store_true", help="correctness alone")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these checks and figures alone")
    parser.add_argument("--sweep", action="store_true", help="also measure other tile sizes")
    parser.add_argument("--dry", action="store_true", help="on a CPU, with Triton's interpreter")
    parser.add_argument("--output", type=Path, help="the folder for the results")
    arguments = parser.parse_args()
    if arguments.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which happens below

    import torch

    if not arguments.dry and not torch.cuda.is_available():
        print("no GPU here: PyTorch finds none. --dry runs the same code on a CPU.", file=sys.stderr)
        return 2
    sys.path += [str(ROOT), str(ROOT / "tools")]  # for benchmarks.norm_accuracy and report_calibration
    device = torch.device("cpu") if arguments.dry else torch.device("cuda", torch.cuda.current_device())
    if arguments.dry:
        import gpu_interpreter

        from optiacts import backends
        from optiacts.backends import eager
        from optiacts.backends import triton as triton_backend

        gpu_interpreter.remember_builtins()

        def interpreted(x: torch.Tensor, curve: Any, scaled: bool = False) -> Any:
            return triton_backend if x.dtype in triton_backend.dtypes else eager

        backends.select = backends.select_gated = interpreted

    output = arguments.output or (None if arguments.dry else RESULTS)
    report: Report = {"machine": _machine(device), "checks": {}, "figures": {}}
    for part, name, found in _parts(device, arguments):
        report[part][name] = found
        if output:  # after each, so that a run that is stopped leaves what it found
            _write(output, report)
    failed = [name for name, check in report["checks"].items() if check["status"] == "failed"]
    failed += [name for name, rows in report["figures"].items() for row in rows if "failed" in row]
    print(markdown(report))
    print("failed: " + ", ".join(failed) if failed else "all checks passed")
    return int(bool(failed))


def _parts(device: Any, arguments: argparse.Namespace) -> Iterator[tuple[str, str, Any]]:
    """Every test and figure that is wanted: its part of the report, its name, what was found."""
    import gpu_models
    import gpu_peaks
    import gpu_speed

    from benchmarks.frontier.gpu import frontier

    figures = (
        gpu_speed.kernels,
        gpu_speed.gated_kernels,
        gpu_speed.norm_kernels,
        gpu_speed.chain_kernels,
        gpu_speed.launch_cost,
        gpu_speed.steps,
        gpu_speed.sweep,
        gpu_peaks.peaks,
        gpu_models.models,
        gpu_models.compiled_models,
        frontier,
    )
    only = arguments.only
    if not only or arguments.checks or {figure.__name__ for figure in figures}.isdisjoint(only):
        for name, found in _checked(only, arguments.dry).items():
            yield "checks", name, found
    if arguments.checks:
        return
    for figure in figures:
        name = figure.__name__
        if name in only if only else name != "sweep" or arguments.sweep:
            yield "figures", name, _measured(figure, device, arguments.dry)


def _checked(only: list[str] | None, dry: bool) -> dict[str, Report]:
    """What the tests of tests/gpu found, in a process that gives its memory back; by function, cases together."""
    if importlib.util.find_spec("pytest") is None:
        print(f"THE TESTS DID NOT RUN: {sys.executable} has no pytest. See docs/gpu.md.", file=sys.stderr)
        return {"pytest": {"status": "failed", "cases": {}, "found": "not installed: no test ran"}}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", str(ROOT / "tests/gpu"), f"--junit-xml={found}"]
        command += ["-k", " or ".join(only)] if only else []
        if importlib.util.find_spec("xdist") is not None:  # most of the time goes into compiling
            command += ["-n", str(max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) * 3 // 4))), "--dist", "worksteal"]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if dry else {"OMP_NUM_THREADS": "2"}
        run = subprocess.run(command, cwd=ROOT, env=os.environ | hidden, stdout=sys.stderr, check=False)
        if run.returncode not in (0, 1, 5):  # passed, failed, nothing of this name
            return {"pytest": {"status": "failed", "cases": {}, "found": f"exit status {run.returncode}"}}
        return _by_function(ElementTree.parse(found).iter("testcase"))


def _by_function(cases: Iterable[ElementTree.Element]) -> dict[str, Report]:
    statuses: dict[str, Counter[str]] = {}
    found: dict[str, Report] = {}
    for case in cases:
        function, _, parameters = case.attrib["name"].partition("[")
        name = (
            f"{case.attrib['classname'].rpartition('.')[2].removeprefix('test_')}: {function.removeprefix('test_')}"
        )
        told = {kind: case.find(kind) for kind in ("error", "failure", "skipped")}
        kind = next((kind for kind, element in told.items() if element is not None), "passed")
        statuses.setdefault(name, Counter())["failed" if kind in ("error", "failure") else kind] += 1
        measured = {p.attrib["name"]: _number(p.attrib["value"]) for p in case.iter("property")}
        if (element := told.get(kind)) is not None:
            measured[kind] = element.attrib.get("message", "").partition("\n")[0]
        if measured:
            found.setdefault(name, {})[parameters.rstrip("]")] = measured
    return {
        name: {
            "status": next(status for status in ("failed", "passed", "skipped") if count[status]),
            "cases": dict(count),
            "found": found.get(name, {}),
        }
        for name, count in statuses.items()
    }


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _measured(figure: Callable[[Any, bool], Any], device: Any, dry: bool) -> list[Report]:
    start = time.perf_counter()
    try:
        found = figure(device, dry)
    except Exception:  # the other figures are worth having
        found = {"failed": traceback.format_exc()}
    print(f"measured {figure.__name__} ({time.perf_counter() - start:.1f} s)", file=sys.stderr, flush=True)
    return found if isinstance(found, list) else [found]


def _write(output: Path, report: Report) -> None:
    output.mkdir(parents=True, exist_ok=True)
    stem = "gpu_check_" + "".join(c if c.isalnum() else "_" for c in report["machine"]["device"]).lower()
    path = output / f"{stem}.json"
    report = _with_earlier(json.loads(path.read_text()) if path.exists() else {}, report)
    path.write_text(json.dumps(report, indent=1) + "\n")
    (output / f"{stem}.md").write_text(markdown(report))


def _with_earlier(earlier: Report, report: Report) -> Report:
    """``report``, and what it lacks of an ``earlier`` one of the device; with the date of each figure."""
    date = report["machine"]["date"]
    dates = earlier.get("dates", {}) | dict.fromkeys(report["figures"], date)
    checks = report["checks"] or earlier.get("checks", {})
    figures = earlier.get("figures", {}) | report["figures"]
    return earlier | {"machine": report["machine"], "checks": checks, "figures": figures, "dates": dates}


def _machine(device: Any) -> Report:
    import torch
    import triton

    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else "CPU, Triton's interpreter",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def markdown(report: Report) -> str:
    """The report as tables."""
    machine = report["machine"]
    lines = [f"# {machine['device']}", "", ", ".join(f"{key} {value}" for key, value in machine.items() if value), ""]
    lines += ["| tests | cases | found |", "|---|---|---|"]
    for name, check in report["checks"].items():
        found = check["found"] if isinstance(check["found"], str) else json.dumps(_rounded(check["found"]))
        count = ", ".join(f"{number} {status}" for status, number in check["cases"].items())
        lines.append(f"| {name} | {count} | {found.replace(chr(10), ' ').replace('|', '/')} |")
    for title, rows in report.get("figures", {}).items():
        if rows:
            date = report.get("dates", {}).get(title, machine["date"])
            lines += ["", f"## {title.replace('_', ' ')}, {date}", "", "| " + " | ".join(rows[0]) + " |"]
            lines.append("|" + "---|" * len(rows[0]))
            lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    lines += ["", "## Notes", "", *report["notes"]] if "notes" in report else []  # of people, in the JSON file
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return str(_rounded(value)).replace("\n", " ").replace("|", "/")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
