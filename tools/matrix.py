"""Writes the row of docs/matrix.md of the Python and the PyTorch that run it; `make matrix` calls it.

python tools/matrix.py tests.xml ...    what pytest found (--junit-xml), of a test that was run again the last time;
                                        exit status 1 if a test failed
"""

from __future__ import annotations

import csv
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import torch

import optiacts

ROOT = Path(__file__).parents[1]
DATA, PAGE = ROOT / "benchmarks/results/matrix.csv", ROOT / "docs/matrix.md"
COLUMNS = ("python", "torch", "triton", "cpu", "passed", "failed", "skipped", "which failed", "date")
Row = dict[str, str]

HEAD = """# Versions

Written by `make matrix` (noxfile.py, tools/matrix.py); do not edit. The core tests (forward, functions, gradients,
saved bytes, gated products, `torch.func`, `torch.compile`, `torch.export`, the facts in `src/optiacts/_torch.py`) on
the oldest PyTorch that is promised, the one that has run on GPUs, the one that `make test` uses, and the newest, each
with one and the same wheel.
A pair that has no row has not been run.

"""


def main() -> int:
    row = _row([Path(name) for name in sys.argv[1:]])
    rows = list(csv.DictReader(DATA.open(newline=""))) if DATA.exists() else []
    rows = [other for other in rows if _pair(other) != _pair(row)] + [row]
    rows.sort(key=_pair)
    with DATA.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    PAGE.write_text(HEAD + _table(rows))
    print(_table([row]))
    return int(row["failed"] != "0")


def _row(found: list[Path]) -> Row:
    last = {_name(case): case for path in found for case in ElementTree.parse(path).iter("testcase")}
    cases = last.values()
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cpu": _cpu(),
        "passed": str(len(cases) - len(failed) - skipped),
        "failed": str(len(failed)),
        "skipped": str(skipped),
        "which failed": " ".join(
            f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}" for case in failed
        ),
        "date": time.strftime("%Y-%m-%d"),
    }


def _name(case: ElementTree.Element) -> str:
    return f"{case.attrib['classname'].rpartition('.')[2]}::{case.attrib['name']}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _cpu() -> str:
    """The backend that serves the CPU, with its instruction set."""
    found = optiacts.doctor()
    return " ".join([found.devices[0].backend, *([found.cpu["instruction set"]] if found.cpu else [])])


def _pair(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Python's minor version and PyTorch's release: what a row is about, and its order."""
    python, release = (tuple(map(int, re.findall(r"\d+", row[key].partition("+")[0]))) for key in ("python", "torch"))
    return python[:2], release


def _table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(row[key] for key in COLUMNS) + " |" for row in rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
