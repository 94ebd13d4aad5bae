"""The picture of the demo: both loss curves, and the two memory bars."""

from __future__ import annotations

from pathlib import Path

from optiacts.demo.training import Run

COLOURS = ("#7f7f7f", "#0b6e99")
MIB = 2**20


def draw(runs: list[Run], path: Path) -> None:
    """Writes a PNG to ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(2, 1))
    for run, colour, width in zip(runs, ("#c9c9c9", COLOURS[1]), (4.5, 1.2), strict=True):  # one upon the other
        curves.plot(run.losses, color=colour, linewidth=width, label=run.name)
    curves.set(xlabel="training step", ylabel="loss, nats per byte", title="A small GPT on real text, same seed")
    curves.legend(frameon=False)

    sizes = [run.saved_bytes / MIB for run in runs]
    drawn = bars.bar([run.name for run in runs], sizes, color=COLOURS, width=0.6)
    bars.bar_label(drawn, [f"{size:.1f} MiB" for size in sizes], padding=2)
    bars.set(ylim=(0, max(sizes) * 1.15), ylabel="MiB", title=f"Held for backward: {sizes[1] / sizes[0] - 1:+.1%}")
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
