"""The report as a picture: stacked bars, one for each stage; what a stage saves is hatched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optiacts.reporting import kinds
from optiacts.reporting.data import MemoryReport
from optiacts.reporting.errors import ReportError
from optiacts.reporting.table import unit_of

# Told apart by colour-blind people too (the palette of Okabe and Ito), and by white lines between neighbours.
COLOURS = {
    kinds.LINEARS: "#0072b2",
    kinds.ATTENTION: "#009e73",
    kinds.NORMS: "#56b4e9",
    kinds.MASKS: "#f0e442",
    kinds.LOSS: "#999999",
    kinds.OTHER: "#dddddd",
    kinds.GATED: "#e69f00",
    kinds.ACTIVATIONS: "#d55e00",
}
SAVED = "saved"


def plot(reports: list[MemoryReport], file: str | Path) -> None:
    """Draws the reports side by side into ``file``; the ending (.png, .svg, .pdf) tells the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError("--plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(1.5 + 3.6 * len(reports), 4.6), layout="constrained")
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for panel, report in zip(panels, reports, strict=True):
        _bars(panel, report)
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    ordered = [kind for kind in (SAVED, *reversed(kinds.KINDS)) if kind in handles]
    figure.legend([handles[kind] for kind in ordered], ordered, loc="outside right center", frameon=False)
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise ReportError(f"--plot {file}: {error}; give a writable path ending in .png, .svg or .pdf") from error


def _bars(panel: Any, report: MemoryReport) -> None:
    unit = unit_of(report)
    names = [stage.name.replace(" converted", "\nconverted") for stage in report.stages]
    bottoms = [0.0] * len(names)
    now = report.now.bytes / unit.bytes
    bar = {"width": 0.62, "edgecolor": "white", "linewidth": 0.8}
    for kind in kinds.KINDS:
        heights = [stage.kinds[kind] / unit.bytes for stage in report.stages]
        if max(heights) < 0.002 * now:
            continue
        panel.bar(names, heights, bottom=bottoms, label=kind, color=COLOURS[kind], **bar)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    saved = [max(now - bottom, 0.0) for bottom in bottoms]
    panel.bar(
        names[1:], saved[1:], 0.62, bottom=bottoms[1:], label=SAVED, fill=False, hatch="////", edgecolor="#bbbbbb"
    )
    for index, stage in enumerate(report.stages):
        change = "" if index == 0 else f"\n{report.change(stage):+.1%}"
        top = max(now, bottoms[index])
        panel.text(index, top, f"{unit(stage.bytes)} {unit.name}{change}", ha="center", va="bottom", fontsize="small")
    words = [report.setting[key] for key in ("batch", "dtype") if key in report.setting]
    panel.set_title(f"{report.name}\n{', '.join(words)}", fontsize=10)
    panel.tick_params(axis="x", labelsize="small")  # four or five names side by side
    panel.set_ylabel(f"held for backward, {unit.name}")
    panel.margins(y=0.15)
    panel.spines[["top", "right"]].set_visible(False)
