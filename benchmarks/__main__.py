"""Prints the tables and writes them to benchmarks/results/*.csv."""

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
from benchmarks import block, norms, operations

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="per line of the tables")
    parser.add_argument("--sizes", type=int, nargs="+", default=operations.SIZES, help="elements")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: no C++ compiler needed")
    parser.add_argument("--only", choices=("operations", "norms", "block"), help="one of the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    console = Console(width=160)
    console.print(str(optiacts.doctor()))
    tables: dict[str, tuple[str, Iterable[Any]]] = {
        "operations": (
            "forward + backward, µs; ratios: ours / theirs",
            operations.rows(arguments.sizes, not arguments.no_compile, arguments.seconds),
        ),
        "norms": ("norms, forward + backward, µs; ratios: ours / theirs", norms.rows(arguments.seconds)),
        "block": ("training step of a BERT-base layer, ms", block.rows(5 * arguments.seconds)),
    }
    for name, (title, rows) in tables.items():
        if arguments.only in (None, name):
            _publish(console, f"cpu_{name}", title, rows)


def _publish(console: Console, name: str, title: str, rows: Iterable[Any]) -> None:
    """A table on the console, and its figures in a file."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        lines.append(dataclasses.asdict(row))
        console.print(
            name, *(f"{key}={_text(value)}" for key, value in lines[-1].items()), style="dim", soft_wrap=True
        )
    table = Table(*(key.replace("_", " ") for key in lines[0]), title=title)
    for line in lines:
        table.add_row(*map(_text, line.values()))
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _text(value) for key, value in line.items()} for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
