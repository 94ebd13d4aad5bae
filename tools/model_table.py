"""Converts the models of model_zoo.py and writes docs/models.md: what was converted, and the saved bytes.

python tools/model_table.py            rewrites docs/models.md
python tools/model_table.py --check    exit status 1 if the committed file differs
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import model_zoo
import torch

import optiacts
from optiacts.conversion import ConversionReport

TARGET = Path(__file__).parents[1] / "docs/models.md"

HEAD = """# Models

Written by `python tools/model_table.py`; do not edit. Small instances of each model (one or two layers, hidden
size 32, float32, in training mode), built from their configurations in `tools/model_zoo.py` and converted by
`optiacts.convert`. Saved bytes are those of the distinct storages that autograd holds after a forward, without
parameters and buffers (`optiacts.saved_memory`). Shares of real sizes differ: attention, embeddings and norms weigh
differently there. `tests/test_convert_models.py` checks on the same models that the forward has the same bits,
that the gradients are within the contract, and that `optiacts.revert` restores everything.

| model | converted | left alone, of its own forwards | saved bytes before | after | change |
|---|---|---|---:|---:|---:|
"""


def row(entry: model_zoo.Entry) -> str:
    """One line of the table."""
    model, inputs = model_zoo.build(entry).train(), model_zoo.inputs(entry)
    before = _saved(model, inputs)
    report = optiacts.convert(model)
    after = _saved(model, inputs)
    change = f"{100 * (after - before) / before:+.1f} %" if after != before else "none"
    cells = (entry.name, _converted(report), _left(report), f"{before:,}", f"{after:,}", change)
    return f"| {' | '.join(cells)} |\n"


def _saved(model: torch.nn.Module, inputs: dict[str, object]) -> int:
    torch.manual_seed(3)
    return optiacts.saved_memory(model, **inputs).bytes


def _converted(report: ConversionReport) -> str:
    counts: dict[str, int] = {}
    for entry in report.converted:
        text = f"{entry.what} ({entry.kind})"
        counts[text] = counts.get(text, 0) + 1
    return "<br>".join(f"{count} x {text}" for text, count in counts.items()) or "nothing"


def _left(report: ConversionReport) -> str:
    return "<br>".join(dict.fromkeys(f"{entry.kind}: {entry.reason}" for entry in report.left))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text = HEAD + "".join(map(row, model_zoo.ZOO))
    if arguments.check:
        return int(text != TARGET.read_text())
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
