"""The picture of the demo: loss curves and how far they are apart, bytes held, step times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optiacts.demo.training import Run

THEIRS, OURS = "#e69f00", "#0072b2"  # told apart by colour-blind people too
MIB = 2**20


def draw(runs: list[Run], path: Path) -> None:
    """Writes a PNG to ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(2.6, 1, 1), height_ratios=(2.4, 1))
    curves = figure.add_subplot(grid[0, 0])
    strip = figure.add_subplot(grid[1, 0], sharex=curves)
    held, times = (figure.add_subplot(grid[:, column]) for column in (1, 2))

    theirs, ours = runs
    curves.plot(theirs.losses, color=THEIRS, linewidth=4.0, label=theirs.name)  # one upon the other
    curves.plot(ours.losses, color=OURS, linewidth=1.2, label=ours.name)
    curves.set(ylabel="loss, nats per byte", title="A small GPT on real text, same seed")
    curves.tick_params(labelbottom=False)
    curves.legend(frameon=False)
    strip.axhline(0, color="#999999", linewidth=0.8)
    strip.plot(ours.apart(theirs), color=OURS, linewidth=1.0)
    strip.set(xlabel="training step", ylabel="difference")
    strip.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))

    _bars(held, runs, [run.saved_bytes / MIB for run in runs], "MiB", "Held for backward")
    _bars(times, runs, [run.step_seconds * 1e3 for run in runs], "ms", "Step time, median")
    for axes in (curves, strip, held, times):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _bars(axes: Any, runs: list[Run], values: list[float], unit: str, title: str) -> None:
    drawn = axes.bar([run.name for run in runs], values, color=(THEIRS, OURS), width=0.6)
    axes.bar_label(drawn, [f"{value:.1f} {unit}" for value in values], padding=2)
    axes.set(ylim=(0, max(values) * 1.12), ylabel=unit, title=f"{title}\n{values[1] / values[0] - 1:+.1%}")
