"""Amounts of memory as people say them, read and written."""

from __future__ import annotations

import difflib
import math
import re
from typing import NamedTuple

from optiacts.reporting.cards import CARDS, card, sizes_of
from optiacts.reporting.errors import ReportError

_UNITS = {
    "": 30,
    "M": 20,
    "MB": 20,
    "MIB": 20,
    "G": 30,
    "GB": 30,
    "GIB": 30,
    "T": 40,
    "TB": 40,
    "TIB": 40,
}  # powers of 2
_LEAST, _MOST_GIB = 2**26, 2**14  # what a device may have: 64 MiB to 16 TiB


def memory_of(said: object) -> int:
    """The bytes of a device's memory as people say it.

    ``"24GB"``, ``"24GiB"``, ``"24"`` and ``24`` are what a card is sold as: 24 x 2**30 bytes. Names of cards are
    those of ``optiacts.reporting.cards``. Bare numbers above 2**26 are bytes. ``ReportError`` for anything else.
    """
    if isinstance(said, str):
        named = card(said)
        if named is not None:
            return named
        match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([A-Za-z]*)\s*", said)
        if match is None or match[2].upper() not in _UNITS:
            raise ReportError(f"{said!r} is not a size or a card{_hint(said)}; give one such as 24GB or rtx-4090")
        number, power = float(match[1]), _UNITS[match[2].upper()]
        if match[2]:
            return _plausible(number * 2**power, said)
    elif isinstance(said, (int, float)) and not isinstance(said, bool):
        number = float(said)
    else:
        raise ReportError(f'a memory size is a number of GiB, or a text such as "24GB"; got {said!r}')
    return _plausible(number if number >= _LEAST else number * 2**30, said)


def _plausible(nbytes: float, said: object) -> int:
    if not (math.isfinite(nbytes) and _LEAST <= nbytes <= _MOST_GIB * 2**30):
        raise ReportError(
            f"{said!r} is not the memory of a device: those have 64 MiB to 16 TiB; a bare number is GiB, so "
            "give one such as 24, 24GB or 500MB"
        )
    return int(nbytes)


def _hint(said: str) -> str:
    sold = sizes_of(said) or difflib.get_close_matches(said.lower(), CARDS, n=2)
    return f" (did you mean {' or '.join(sold)}?)" if sold else ""


class Unit(NamedTuple):
    """GiB, or MiB for small models."""

    name: str
    bytes: int

    def __call__(self, nbytes: float) -> str:
        """``nbytes`` in this unit; what would be 0.00 in a smaller one, which is named."""
        if nbytes and abs(nbytes) < 0.005 * self.bytes:
            for name, size in (("MiB", 2**20), ("KiB", 2**10)):
                if abs(nbytes) >= 0.1 * size and size < self.bytes:
                    return f"{nbytes / size:.2f} {name}"
            return f"{nbytes:.0f} B"
        return f"{nbytes / self.bytes:.2f}"

    def named(self, nbytes: float) -> str:
        """``nbytes`` with the unit."""
        text = self(nbytes)
        return text if " " in text else f"{text} {self.name}"


GIB = Unit("GiB", 2**30)
MIB = Unit("MiB", 2**20)


def in_words(nbytes: float) -> str:
    """``nbytes`` with its unit."""
    return (GIB if abs(nbytes) >= 0.1 * GIB.bytes else MIB).named(nbytes)
