"""Converts the models of model_zoo.py: docs/models.md says what was converted, and the saved bytes.

python tools/model_table.py            rewrites docs/models.md
python tools/model_table.py --check    exit status 1 if a model holds more than the committed file says, or is
                                       converted otherwise
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import model_zoo
import torch
from rich.console import Console
from rich.progress import track

import optiacts
from optiacts.conversion import ConversionReport

TARGET = Path(__file__).parents[1] / "docs/models.md"
NOTABLE = 10  # percent

HEAD = """# Models

Written by `python tools/model_table.py`; do not edit. Small instances of each model (one or two layers, hidden
size 32, float32, in training mode), built from their configurations in `tools/zoo` and converted by
`optiacts.convert`. Saved bytes are those of the distinct storages that autograd holds after a forward, without
parameters and buffers (`optiacts.saved_memory`). Shares of real sizes differ: attention, embeddings and norms weigh
differently there. `make zoo` compares the bytes with this table and checks on the same models that the forward has
the same bits, that the gradients are within the contract, and that `optiacts.revert` restores everything.

"""
COLUMNS = """| model | converted | left alone | saved bytes before | after | change |
|---|---|---|---:|---:|---:|
"""


@dataclass(frozen=True)
class Row:
    """One model of the table."""

    name: str
    converted: str
    left: str
    before: int
    after: int

    @property
    def change(self) -> float:
        """In percent."""
        return 100 * (self.after - self.before) / self.before

    def __str__(self) -> str:
        change = f"{self.change:+.1f} %" if self.after != self.before else "none"
        cells = (self.name, self.converted, self.left, f"{self.before:,}", f"{self.after:,}", change)
        return f"| {' | '.join(cells)} |"

    @classmethod
    def parse(cls, line: str) -> Row:
        name, converted, left, before, after, _ = (cell.strip() for cell in line.strip().strip("|").split(" | "))
        return cls(name, converted, left, int(before.replace(",", "")), int(after.replace(",", "")))


def measure(entry: model_zoo.Entry) -> Row:
    model, inputs = model_zoo.build(entry).train(), model_zoo.inputs(entry)
    before = _saved(model, inputs)
    report = optiacts.convert(model)
    after = _saved(model, inputs)
    return Row(entry.name, _converted(report), _left(report), before, after)


def committed() -> dict[str, Row]:
    """The rows of docs/models.md by their names."""
    lines = TARGET.read_text().splitlines()
    rows = map(Row.parse, (line for line in lines if line.startswith("| ") and not line.startswith("| model |")))
    return {row.name: row for row in rows}


def complaints(now: Row, then: Row | None) -> Iterator[str]:
    """What is worse than, or not what stands in, the committed row; fewer bytes are welcome."""
    if then is None:
        yield f"{now.name}: not in the table"
        return
    if now.after > then.after:
        yield f"{now.name}: saved bytes rose from {then.after:,} to {now.after:,}"
    for what, old, new in (("converted", then.converted, now.converted), ("left alone", then.left, now.left)):
        if old != new:
            yield f"{now.name}: {what}\n  - {old or 'nothing'}\n  + {new or 'nothing'}"


def notable(rows: Iterable[Row]) -> int:
    """How many save a share worth naming."""
    return sum(row.change < -NOTABLE for row in rows)


def _saved(model: torch.nn.Module, inputs: dict[str, object]) -> int:
    model_zoo.seed(3)
    return optiacts.saved_memory(model, **inputs).bytes


def _converted(report: ConversionReport) -> str:
    counts = Counter(f"{entry.what} ({entry.kind})" for entry in report.converted)
    return "<br>".join(f"{count} x {text}" for text, count in counts.items()) or "nothing"


def _left(report: ConversionReport) -> str:
    reasons = (" ".join(entry.reason.split()) for entry in report.left)  # errors of others come with line breaks
    return "<br>".join(dict.fromkeys(f"{entry.kind}: {why}" for entry, why in zip(report.left, reasons, strict=True)))


def _text(rows: list[Row]) -> str:
    summary = f"{len(rows)} models, of which {notable(rows)} save more than {NOTABLE} %.\n\n"
    return HEAD + summary + COLUMNS + "".join(f"{row}\n" for row in rows)


def _check(rows: list[Row]) -> int:
    table = committed()
    found = [complaint for row in rows for complaint in complaints(row, table.get(row.name))]
    found += [f"{name}: in the table, not in the zoo" for name in table.keys() - {row.name for row in rows}]
    print("\n".join(found) or f"{len(rows)} models as in {TARGET.name}")
    return int(bool(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [measure(entry) for entry in track(model_zoo.ZOO, "models", console=Console(stderr=True))]
    if arguments.check:
        return _check(rows)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
