"""The demo as people see it: progress, tables, a picture."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import optiacts
from optiacts.demo.full_size import reports
from optiacts.demo.picture import draw
from optiacts.demo.training import BATCH, CONTEXT, DROPOUT, Change, Run, compare
from optiacts.reporting.sizes import GIB

MIB = 2**20


def run(steps: int, seed: int, picture: Path) -> list[Run]:
    """Trains, prints both tables and writes the picture."""
    console = Console()
    console.print(
        "The same small GPT, trained as it is and after optiacts.convert(model). About a minute on two cores."
    )
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=steps)

        def progress(runs: list[Run]) -> None:
            losses = " | ".join(f"{run.name} {run.losses[-1]:.3f}" for run in runs)
            bar.update(task, advance=1, description=f"loss {losses}")

        changes: dict[str, Change] = {"PyTorch": lambda model: None, "OptiActs": optiacts.convert}
        runs = compare(changes, steps, seed, progress)
    console.print(training_table(runs))
    draw(runs, picture)
    console.print(f"Picture: {picture}\n")
    with console.status("two models at full size, on fake tensors"):
        table = full_size_table()
    console.print(table)
    console.print("Your own model: optiacts report --help")
    return runs


def training_table(runs: list[Run]) -> Table:
    """What was measured in both trainings."""
    table = Table(
        title=f"A small GPT on Python's help texts, {BATCH} x {CONTEXT} bytes a step: "
        f"2 layers with GELU, 2 with SwiGLU, dropout {DROPOUT}, LayerNorm, float32"
    )
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    edge = max(1, min(20, len(runs[0].losses) // 4))
    theirs, ours = runs
    rows = {
        "held for backward": [f"{run.saved_bytes / MIB:.2f} MiB" for run in runs],
        "  against PyTorch": ["", f"{ours.saved_bytes / theirs.saved_bytes - 1:+.1%}"],
        "step time, median": [f"{run.step_seconds * 1e3:.1f} ms" for run in runs],
        "  ratio to PyTorch": ["", f"{ours.step_seconds / theirs.step_seconds:.2f}"],
        "loss, first step": [f"{run.losses[0]:.6f}" for run in runs],
        f"loss, mean of last {edge}": [f"{run.mean_loss(slice(-edge, None)):.6f}" for run in runs],
        "losses, largest difference": ["", f"{max(map(abs, ours.apart(theirs))):.1e}"],
    }
    for label, cells in rows.items():
        table.add_row(label, *cells)
    return table


def full_size_table() -> Table:
    """Bytes held for models that nobody needs to download."""
    table = Table(title="Held for backward at full size on a GPU, parameters left out (computed on fake tensors)")
    for heading in ("model", "setting", "PyTorch", "converted", "saved"):
        table.add_column(heading, justify="left" if heading in ("model", "setting") else "right")
    for made in reports():
        before, after = made.now.bytes, made.stages[-1].bytes
        setting = ", ".join(made.setting[key] for key in ("batch", "dtype"))
        table.add_row(made.name, setting, f"{GIB(before)} GiB", f"{GIB(after)} GiB", f"{1 - after / before:.1%}")
    return table
