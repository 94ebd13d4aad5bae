"""What a conversion did, and what it left alone and why: plain data, printable as a table."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Conversion:
    """One module that was looked at.

    ``path`` and ``kind`` are its name in the model and its class; ``what`` is what was converted, such as
    ``"gelu"`` or ``"silu gate"``, and empty if it was left alone; ``reason`` says why it was left alone, ``note``
    what else there is to know of a conversion.
    """

    path: str
    kind: str
    what: str = ""
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class ConversionReport:
    """What ``optiacts.convert`` did to a model, in the order of its modules.

    ``saved_bytes`` are the bytes that autograd holds after a forward on the example inputs, before and after the
    conversion; None without example inputs.
    """

    entries: tuple[Conversion, ...]
    saved_bytes: tuple[int, int] | None = None

    @property
    def converted(self) -> tuple[Conversion, ...]:
        """The modules whose forward changed."""
        return tuple(entry for entry in self.entries if entry.what)

    @property
    def left(self) -> tuple[Conversion, ...]:
        """The modules that were left alone, each with the reason."""
        return tuple(entry for entry in self.entries if not entry.what)

    def __str__(self) -> str:
        if not self.entries:
            return "nothing to convert"
        rows = [("module", "class", "converted"), *_folded(self.entries)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(f"{len(self.converted)} converted, {len(self.left)} left alone")
        if self.saved_bytes is not None:
            before, after = self.saved_bytes
            share = f" ({100 * (after - before) / before:+.1f} %)" if before else ""
            lines.append(f"held for backward: {before:,} bytes before, {after:,} after{share}")
        return "\n".join(lines)


def _folded(entries: tuple[Conversion, ...]) -> list[tuple[str, str, str]]:
    """One row for all layers that differ in their number only: ``layers.*.mlp (12)``."""
    groups: dict[tuple[str, str, str], int] = {}
    for entry in entries:
        what = f"left: {_without_numbers(entry.reason)}" if not entry.what else entry.what
        note = f" ({entry.note})" if entry.note else ""
        key = (_without_numbers(entry.path) or "(the model)", entry.kind, what + note)
        groups[key] = groups.get(key, 0) + 1
    return [(f"{path} ({count})" if count > 1 else path, kind, what) for (path, kind, what), count in groups.items()]


def _without_numbers(text: str) -> str:
    """``text`` with a star for the number of every layer in the paths that it names."""
    return re.sub(r"(?<![\w])\d+(?=\.[A-Za-z_])|(?<=[A-Za-z_]\.)\d+(?!\w)", "*", text)
