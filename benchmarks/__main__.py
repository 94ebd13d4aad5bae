"""Prints the tables, writes them to benchmarks/results/*.csv, and says what falls short of contract.py."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import optiacts
from benchmarks import contract, operations, steps
from optiacts.backends import native, native_library

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="per line of the tables, or 20 pairs")
    parser.add_argument("--sizes", type=int, nargs="+", default=operations.SIZES, help="elements")
    parser.add_argument("--operations", nargs="+", choices=operations.CASES, default=[*operations.CASES])
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: no C++ compiler needed")
    parser.add_argument("--only", choices=("operations", "steps"), help="one of the tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the files")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    settle()
    console = Console(width=160)
    console.print(str(optiacts.doctor()))
    level = "portable" if native.unavailable(torch.device("cpu")) else native_library.level()
    judged: list[contract.Judged] = []
    if arguments.only != "steps":
        title = f"forward + backward, {level}, {arguments.threads} threads"
        found = operations.rows(arguments.sizes, arguments.seconds, arguments.operations)
        rows = _published(console, arguments.results / f"cpu_operations_{level}.csv", title, found)
        judged.extend(operations.judged(rows, contract.OF_LEVEL[level]))
    if arguments.only != "operations":
        title = f"training steps, {level}, {arguments.threads} threads"
        whole = steps.rows(not arguments.no_compile, 5 * arguments.seconds)
        judged.extend(steps.judged(_published(console, arguments.results / f"cpu_steps_{level}.csv", title, whole)))
    for line in contract.verdict(judged):
        console.print(line, soft_wrap=True)


def settle() -> None:
    """Brings malloc to where a training process is, which has freed a tensor of 31 MiB before.

    Until then glibc gives the top of its heap back whenever more than twice its largest block so far is free. A step
    of 4 MiB tensors pays for new pages each time then, or does not, by a few bytes more or less.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _published(console: Console, file: Path, title: str, rows: Iterable[Any]) -> list[Any]:
    """The rows, also as a table on the console and as figures in a file."""
    found: list[Any] = []
    for row in rows:
        found.append(row)
        texts = (f"{key}={_text(value)}" for key, value in dataclasses.asdict(row).items())
        console.print(file.stem, *texts, style="dim", soft_wrap=True)
    lines = [dataclasses.asdict(row) for row in found]
    table = Table(*(key.replace("_", " ") for key in lines[0]), title=title)
    for line in lines:
        table.add_row(*map(_text, line.values()))
    console.print(table)
    file.parent.mkdir(exist_ok=True, parents=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _text(value) for key, value in line.items()} for line in lines)
    return found


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
