"""The demo as people see it: progress, tables, a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import optiacts
from optiacts.demo.bert import published_setting
from optiacts.demo.picture import draw
from optiacts.demo.training import Run, compare
from optiacts.reporting import MemoryReport

MIB, GIB = 2**20, 2**30


def run(steps: int, seed: int, picture: Path) -> list[Run]:
    """Trains, prints both tables and writes the picture."""
    console = Console()
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=steps)

        def progress(runs: list[Run]) -> None:
            losses = " | ".join(f"{run.name} {run.losses[-1]:.3f}" for run in runs)
            bar.update(task, advance=1, description=f"loss {losses}")

        activations: dict[str, Callable[[], torch.nn.Module]]
        activations = {"torch.nn.GELU": torch.nn.GELU, "optiacts.GELU": optiacts.GELU}
        runs = compare(activations, steps, seed, progress)
    console.print(training_table(runs))
    draw(runs, picture)
    console.print(f"Picture: {picture}\n")
    console.print(bert_table(published_setting()))
    return runs


def training_table(runs: list[Run]) -> Table:
    """What was measured in both trainings."""
    table = Table(title="A small GPT (4 layers, width 128) on Python's help texts, 16 x 128 bytes a step")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    edge = max(1, min(20, len(runs[0].losses) // 4))
    theirs = runs[0]
    rows = {
        "held for backward": [f"{run.saved_bytes / MIB:.2f} MiB" for run in runs],
        "  against PyTorch": [f"{run.saved_bytes / theirs.saved_bytes - 1:+.1%}" for run in runs],
        "step time, median": [f"{run.step_seconds * 1e3:.1f} ms" for run in runs],
        "  ratio to PyTorch": [f"{run.step_seconds / theirs.step_seconds:.3f}" for run in runs],
        "loss, first step": [f"{run.losses[0]:.6f}" for run in runs],
        f"loss, mean of last {edge}": [f"{run.mean_loss(slice(-edge, None)):.6f}" for run in runs],
    }
    apart = max(abs(a - b) for a, b in zip(theirs.losses, runs[-1].losses, strict=True))
    rows["losses, largest difference"] = ["", f"{apart:.1e}"]
    for label, cells in rows.items():
        table.add_row(label, *cells)
    return table


def bert_table(made: MemoryReport) -> Table:
    """Saved memory of BERT-base at full size."""
    table = Table(title="BERT-base at full size (fake tensors), float32, 16 x 512 tokens: held for backward on a GPU")
    for heading in ("transformers' GELU", "optiacts.convert(model)", "saved"):
        table.add_column(heading, justify="right")
    before, after = made.now.bytes, made.stages[-1].bytes
    table.add_row(f"{before / GIB:.2f} GiB", f"{after / GIB:.2f} GiB", f"{1 - after / before:.1%}")
    return table
