"""Everything that only a GPU can show about the Triton backend, in one command: first whether it is right, then
how fast it is.

    make gpu-check                            or: PYTHONPATH=src python benchmarks/gpu_check.py
    ... --checks                              correctness alone
    ... --sweep                               also other tile sizes
    ... --dry                                 on a CPU, with Triton's interpreter and tiny sizes

Needs torch, triton and a GPU, nothing else. Writes benchmarks/results/gpu_check_<device>.json and .md (a dry run
only with --output) and exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Report = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checks", action="store_true", help="correctness alone")
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
    device = torch.device("cpu") if arguments.dry else torch.device("cuda", torch.cuda.current_device())
    if arguments.dry:
        from optiacts import backends
        from optiacts.backends import eager
        from optiacts.backends import triton as triton_backend

        backends.select = lambda x, curve: triton_backend if x.dtype in triton_backend.dtypes else eager

    report = {"machine": _machine(device), "checks": _checks(device, arguments.dry)}
    failed = [name for name, check in report["checks"].items() if check["status"] == "failed"]
    if not arguments.checks:
        report |= _figures(device, arguments.dry, arguments.sweep)
    output = arguments.output or (None if arguments.dry else RESULTS)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        stem = "gpu_check_" + "".join(c if c.isalnum() else "_" for c in report["machine"]["device"]).lower()
        (output / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
        (output / f"{stem}.md").write_text(markdown(report))
    print(markdown(report))
    print("failed: " + ", ".join(failed) if failed else "all checks passed")
    return int(bool(failed))


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


def _checks(device: Any, dry: bool) -> Report:
    import gpu_correctness

    reports: Report = {}
    for check in gpu_correctness.CHECKS:
        start = time.perf_counter()
        try:
            found = check(device, dry)
            status = "skipped" if "skipped" in found else "passed"
        except gpu_correctness.BrokenPromiseError as failure:
            status, found = "failed", failure.args[0]
        except Exception:  # any other fault is a failure as well, and the remaining checks are worth running
            status, found = "failed", traceback.format_exc()
        reports[check.__name__] = {"status": status, "found": found}
        print(f"{status:8} {check.__name__} ({time.perf_counter() - start:.1f} s)", file=sys.stderr, flush=True)
    return reports


def _figures(device: Any, dry: bool, sweep: bool) -> Report:
    import gpu_speed

    figures: Report = {}
    wanted = [gpu_speed.kernels, gpu_speed.launch_cost, gpu_speed.steps] + ([gpu_speed.sweep] if sweep else [])
    for measure in wanted:
        found = measure(device, dry)
        figures[measure.__name__] = found if isinstance(found, list) else [found]
        print(f"measured {measure.__name__}", file=sys.stderr, flush=True)
    return figures


def markdown(report: Report) -> str:
    """The report as tables."""
    machine = report["machine"]
    lines = [f"# {machine['device']}", "", ", ".join(f"{key} {value}" for key, value in machine.items() if value), ""]
    lines += ["| check | status | found |", "|---|---|---|"]
    for name, check in report["checks"].items():
        found = check["found"] if isinstance(check["found"], str) else json.dumps(_rounded(check["found"]))
        lines.append(f"| {name} | {check['status']} | {found.replace(chr(10), ' ').replace('|', '/')} |")
    for title in ("kernels", "launch_cost", "steps", "sweep"):
        if title in report:
            rows = report[title]
            lines += ["", f"## {title.replace('_', ' ')}", "", "| " + " | ".join(rows[0]) + " |"]
            lines.append("|" + "---|" * len(rows[0]))
            lines += ["| " + " | ".join(str(_rounded(value)) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
