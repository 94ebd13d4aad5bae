"""The frontier as a picture: memory across, time up, one point for each method, one line for each family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.frontier import methods
from benchmarks.frontier.methods import AGAIN, EAGER, EVERYTHING
from benchmarks.frontier.rows import Row
from benchmarks.frontier.verdict import KINDS, cost, memory


class Look(NamedTuple):
    """Colour-blind people tell them apart too: the palette of Okabe and Ito, and a marker of its own for each."""

    colour: str
    marker: str
    line: str = ""


LOOKS = {
    methods.CHECKPOINTING: Look("#000000", "o", "-"),
    methods.SELECTIVE: Look("#000000", "P"),
    methods.COMPILED: Look("#0072b2", "s", "--"),
    methods.PUBLISHED: Look("#cc79a7", "X"),
    methods.LIGER: Look("#999999", "h"),
    methods.STAGES: Look("#e69f00", "^"),
    methods.OURS: Look("#d55e00", "D", "-"),
    methods.OURS_SELECTIVE: Look("#d55e00", "*"),
    methods.OURS_COMPILED: Look("#009e73", "v", "--"),
}
WORDS = {
    methods.CHECKPOINTING: "PyTorch; every 3rd, 2nd, 1st layer checkpointed",
    methods.SELECTIVE: "selective checkpointing, products kept",
    methods.COMPILED: "torch.compile; with a memory budget",
    methods.STAGES: "OptiActs: its stages",
    methods.OURS: "OptiActs; every 3rd, 2nd, 1st layer checkpointed",
    methods.OURS_SELECTIVE: "OptiActs, selective checkpointing",
    methods.OURS_COMPILED: "OptiActs + torch.compile; with a memory budget",
}
AXES = {"held": "held for backward, % of eager PyTorch's", "peak": "peak of a step, % of eager PyTorch's"}
_SHORT = {"third layer": "3", "second layer": "2", "every layer": "1"}


def draw(rows: Sequence[Row], file: Path) -> None:
    """Two panels for each model, held memory and peak, into ``file``."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model for row in rows))
    figure = Figure(figsize=(1 + 4.1 * len(models), 8.2), layout="constrained")
    panels = figure.subplots(len(KINDS), len(models), squeeze=False)
    for column, model in enumerate(models):
        of_model = [row for row in rows if row.model == model]
        for kind, panel in zip(KINDS, panels[:, column], strict=True):
            _panel(panel, of_model, kind)
        panels[0, column].set_title(f"{model}\n{of_model[0].size}", fontsize=10)
    for row in panels:
        row[0].set_ylabel("time of a step, over eager PyTorch's")
    handles = {label: h for p in panels.flat for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(file, dpi=130)


def _panel(panel: Any, rows: list[Row], kind: str) -> None:
    base = memory(next(row for row in rows if row.method == EAGER.name), kind)
    panel.axhspan(1 - rows[0].noise, 1 + rows[0].noise, color="#eeeeee", zorder=0, label="the noise around PyTorch")
    _between(panel, rows, kind, base)
    for family, look in LOOKS.items():
        points = [
            (100 * memory(row, kind) / base, cost(row), row)
            for row in rows
            if row.family == family and row.time is not None and row.method != AGAIN.name
        ]
        good = [(x, y) for x, y, row in points if row.good]
        wrong = [(x, y) for x, y, row in points if not row.good]
        style = {"color": look.colour, "marker": look.marker, "markersize": 9 if look.marker == "*" else 7}
        if good:
            panel.plot(
                *zip(*good, strict=True), linestyle=look.line or "none", label=WORDS.get(family, family), **style
            )
        if wrong:
            open_style = style | {"markerfacecolor": "none"}
            panel.plot(*zip(*wrong, strict=True), linestyle="none", label="its gradient is wrong here", **open_style)
        for x, y, row in points:
            panel.annotate(_short(row), (x, y), (4, 4), textcoords="offset points", fontsize=7, color=look.colour)
    panel.set_xlabel(AXES[kind])
    panel.set_xlim(left=0)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _between(panel: Any, rows: list[Row], kind: str, base: float) -> None:
    """The line of the stages, from PyTorch to all of them."""
    first, last = (row for row in rows if row.method in (EAGER.name, EVERYTHING))
    stages = [first, *(row for row in rows if row.family == methods.STAGES), last]
    points = [(100 * memory(row, kind) / base, cost(row)) for row in stages if row.time is not None]
    panel.plot(*zip(*points, strict=True), linestyle=":", color=LOOKS[methods.STAGES].colour)


def _short(row: Row) -> str:
    budget = re.search(r"budget ([\d.]+)", row.method)
    if budget:
        return budget[1]
    if row.family in (methods.CHECKPOINTING, methods.OURS):
        return next((short for words, short in _SHORT.items() if row.method.endswith(words)), "")
    return ""
