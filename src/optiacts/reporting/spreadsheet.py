"""The report as CSV: one line for each stage of each model, sizes in bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from optiacts.reporting.data import MemoryReport


def lines(reports: Sequence[MemoryReport]) -> str:
    """All of ``reports`` with one heading; a cell is empty where a report says nothing of it."""
    rows = [row for report in reports for row in _rows(report)]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(report: MemoryReport) -> list[dict[str, Any]]:
    return [
        {
            "model": report.name,
            **{f"setting: {key}": value for key, value in report.setting.items()},
            "stage": stage.name,
            "held for backward": stage.bytes,
            "change": round(report.change(stage), 6),
            **{f"held: {kind}": nbytes for kind, nbytes in stage.kinds.items()},
            "parameters": report.states.parameters,
            "gradients": report.states.gradients,
            "optimizer state": report.states.optimizer,
            "peak": stage.peak.bytes if stage.peak else None,
            "peak, when": stage.peak.phase if stage.peak else None,
            **({f"at the peak: {part}": size for part, size in stage.peak.parts.items()} if stage.peak else {}),
            "card": report.gpu_memory,
            "largest batch": report.largest_batch(stage),
        }
        for stage in report.stages
    ]
