"""The report as a picture: stacked bars, one for each stage, and the states beside them."""

from __future__ import annotations

from pathlib import Path

from optiacts.reporting.data import MemoryReport
from optiacts.reporting.errors import ReportError
from optiacts.reporting.kinds import KINDS
from optiacts.reporting.table import unit_of

_COLOURS = ("#4e79a7", "#59a14f", "#9c755f", "#bab0ac", "#b07aa1", "#d3d3d3", "#f28e2b", "#e15759")


def plot(reports: list[MemoryReport], file: str | Path) -> None:
    """Draws the reports side by side into ``file``; the ending (.png, .svg, .pdf) tells the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError("--plot needs matplotlib: pip install 'optiacts[report]'") from error
    figure = Figure(figsize=(1.5 + 3.6 * len(reports), 4.6), layout="constrained")
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for panel, report in zip(panels, reports, strict=True):
        _bars(panel, report)
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    ordered = [kind for kind in reversed(KINDS) if kind in handles]
    figure.legend([handles[kind] for kind in ordered], ordered, loc="outside right center", frameon=False)
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise ReportError(f"--plot {file}: {error}; give a writable path ending in .png, .svg or .pdf") from error


def _bars(panel: object, report: MemoryReport) -> None:
    unit = unit_of(report)
    names = [stage.name.replace(" converted", "\nconverted") for stage in report.stages]
    bottoms = [0.0] * len(names)
    for kind, colour in zip(KINDS, _COLOURS, strict=True):
        heights = [stage.kinds[kind] / unit.bytes for stage in report.stages]
        if max(heights) < 0.002 * report.now.bytes / unit.bytes:
            continue
        panel.bar(names, heights, 0.62, bottom=bottoms, label=kind, color=colour)  # type: ignore[attr-defined]
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for index, stage in enumerate(report.stages):
        change = "" if index == 0 else f"\n{report.change(stage):+.1%}"
        panel.text(index, bottoms[index], f"{unit(stage.bytes)} {unit.name}{change}", ha="center", va="bottom")  # type: ignore[attr-defined]
    words = [report.setting[key] for key in ("batch", "dtype") if key in report.setting]
    panel.set_title(f"{report.name}\n{', '.join(words)}", fontsize=10)  # type: ignore[attr-defined]
    panel.set_ylabel(f"held for backward, {unit.name}")  # type: ignore[attr-defined]
    panel.margins(y=0.18)  # type: ignore[attr-defined]
    panel.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]
