"""The part of docs/frontier.md that the figures write: what they say of the claims, and the tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.frontier.methods import AGAIN, EAGER
from benchmarks.frontier.rows import Row
from benchmarks.frontier.verdict import compiled, eager, front, memory, sentences

BEGIN, END = "<!-- found by make frontier -->\n", "<!-- end of what was found -->\n"
PICTURE = "![memory across, time up, a point for each method](figures/frontier.png)"


def put_in(page: str, found: str) -> str:
    """``page`` with ``found`` between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN.strip()} ... {END.strip()}")
    return before + BEGIN + found + END + after


def written(rows: Sequence[Row]) -> str:
    """All that stands between the markers; nothing where nothing was measured."""
    if not rows:
        return ""
    first = rows[0]
    parts = [
        f"{PICTURE}\n\n{first.device}, {first.threads} thread{'s' * (first.threads > 1)}, {first.dtype}, ",
        f"PyTorch {first.torch}, {first.date}.\n",
    ]
    for model in dict.fromkeys(row.model for row in rows):
        of_model = [row for row in rows if row.model == model]
        parts += [
            f"\n### {model}\n\n{of_model[0].size}. {of_model[0].rounds} rounds; PyTorch differs from itself by up to "
            f"{of_model[0].noise:.1%}: the noise.\n\n",
            "".join(f"- {sentence}\n" for sentence in sentences(of_model)),
            "\n",
            table(of_model),
        ]
    return "".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Of one model; a bold method is on the front of its kind, eager or compiled, by held memory or peak."""
    base = next(row for row in rows if row.method == EAGER.name)
    best = {
        row.method
        for group in (eager(rows), compiled(rows))
        for kind in ("held", "peak")
        for row in front(group, kind)
    }
    lines = ["| method | held, MiB | | peak, MiB | | time | bound |\n", "|---|---:|---:|---:|---:|---:|---:|\n"]
    for row in rows:
        if row.held is None or row.peak is None or row.method == AGAIN.name:
            continue
        name = f"**{row.method}**" if row.method in best else row.method
        name += f" ({row.status})" if row.status else ""
        held, peak = (
            f"{memory(row, kind):.1f} | {memory(row, kind) / memory(base, kind):.0%}" for kind in ("held", "peak")
        )
        times = "- | -" if row.time is None or row.bound is None else f"{row.time:.2f} | {row.bound:.2f}"
        lines.append(f"| {name} | {held} | {peak} | {times} |\n")
    missing = [f"{row.method}: {row.status}" for row in rows if row.held is None]
    return "".join(lines) + ("\nDid not run: " + "; ".join(missing) + ".\n" if missing else "")
