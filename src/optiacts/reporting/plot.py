"""The report as a picture: stacked bars, one for each stage; what a stage saves is hatched."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

from optiacts.reporting import kinds
from optiacts.reporting.data import MemoryReport, Stage
from optiacts.reporting.errors import ReportError
from optiacts.reporting.peak import HELD
from optiacts.reporting.sizes import GIB
from optiacts.reporting.table import unit_of

# Told apart by colour-blind people too (the palette of Okabe and Ito), and by white lines between neighbours.
COLOURS = {
    "parameters": "#333333",
    "gradients": "#666666",
    "optimizer state": "#8c6bb1",
    "inputs": "#000000",
    "temporaries": "#cab2d6",
    kinds.LINEARS: "#0072b2",
    kinds.ATTENTION: "#009e73",
    kinds.NORMS: "#56b4e9",
    kinds.MASKS: "#f0e442",
    kinds.LOSS: "#999999",
    kinds.CHECKPOINTS: "#b3de69",
    kinds.OTHER: "#dddddd",
    kinds.GATED: "#e69f00",
    kinds.ACTIVATIONS: "#d55e00",
}
SAVED = "saved"


def check(file: str | Path) -> None:
    """``ReportError`` if no picture can be drawn into ``file``: known before the work, not after it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError("--plot needs matplotlib: pip install matplotlib") from error
    path, known = Path(file), Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise ReportError(f"--plot {file}: give a file ending in .png, .svg or .pdf")
    folder = path.parent
    if not folder.is_dir() or path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ReportError(f"--plot {file}: cannot be written; give a path in a folder that exists")


def plot(reports: list[MemoryReport], file: str | Path) -> None:
    """Draws the reports side by side into ``file``; the ending (.png, .svg, .pdf) tells the format.

    Where the memory of a card is given, the bars are the whole card, and a line is its memory.
    """
    check(file)
    from matplotlib.figure import Figure

    stages = max(len(report.stages) for report in reports)
    figure = Figure(figsize=(1.5 + max(3.6, 0.95 * stages) * len(reports), 4.6), layout="constrained")
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for panel, report in zip(panels, reports, strict=True):
        _bars(panel, report)
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    ordered = [kind for kind in (SAVED, *reversed(COLOURS)) if kind in handles]
    ordered += [label for label in handles if label not in ordered]  # the card
    figure.legend([handles[kind] for kind in ordered], ordered, loc="outside right center", frameon=False)
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise ReportError(f"--plot {file}: {error}; give a writable path ending in .png, .svg or .pdf") from error


def _bars(panel: Any, report: MemoryReport) -> None:
    unit = unit_of(report)
    names = [textwrap.fill(stage.name, 12, break_long_words=False) for stage in report.stages]
    drawn = [_parts(report, stage) for stage in report.stages]
    totals = [sum(parts.values()) / unit.bytes for parts in drawn]
    bottoms = [0.0] * len(names)
    bar = {"width": 0.62, "edgecolor": "white", "linewidth": 0.8}
    for part, colour in COLOURS.items():
        heights = [parts.get(part, 0) / unit.bytes for parts in drawn]
        if max(heights) < 0.002 * totals[0]:
            continue
        panel.bar(names, heights, bottom=bottoms, label=part, color=colour, **bar)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    saved = [max(totals[0] - total, 0.0) for total in totals]
    panel.bar(
        names[1:], saved[1:], 0.62, bottom=totals[1:], label=SAVED, fill=False, hatch="////", edgecolor="#bbbbbb"
    )
    for index, total in enumerate(totals):
        change = "" if index == 0 or not totals[0] else f"\n{total / totals[0] - 1:+.1%}"
        words = f"{unit(total * unit.bytes)} {unit.name}{change}"
        panel.text(index, max(totals[0], total), words, ha="center", va="bottom", fontsize="small")
    if report.gpu_memory is not None:
        label = f"{GIB(report.gpu_memory)} GiB card"
        panel.axhline(report.gpu_memory / unit.bytes, color="#cc0000", linestyle="--", linewidth=1.2, label=label)
    words = ", ".join(report.setting[key] for key in ("batch", "dtype") if key in report.setting)
    panel.set_title(f"{report.name}\n{words}", fontsize=10)
    panel.tick_params(axis="x", labelsize="small")  # four or five names side by side
    panel.set_ylabel(f"{'held for backward' if report.gpu_memory is None else 'on the card'}, {unit.name}")
    panel.margins(y=0.15)
    panel.spines[["top", "right"]].set_visible(False)


def _parts(report: MemoryReport, stage: Stage) -> dict[str, int]:
    """What the bar of ``stage`` is made of, in bytes."""
    if report.gpu_memory is None:
        return stage.kinds
    peak = stage.peak
    if peak is None:
        states = report.states
        fixed = {"parameters": states.parameters, "gradients": states.gradients, "optimizer state": states.optimizer}
        return {**fixed, **stage.kinds}
    held, share = stage.bytes, peak.parts[HELD]  # of what the forward held, so much is left at the peak
    return {
        **{part: size for part, size in peak.parts.items() if part != HELD},
        **{kind: round(size * share / held) if held else 0 for kind, size in stage.kinds.items()},
    }
