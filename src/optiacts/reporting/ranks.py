"""Over how many ranks a model is sharded, as people say it: "fsdp=8,tp=2"."""

from __future__ import annotations

from typing import NamedTuple

from optiacts.reporting.errors import ReportError

_MOST = 1024  # FSDP takes each parameter apart into as many pieces: more take many minutes


class Ranks(NamedTuple):
    """``fsdp`` ranks share parameters, gradients and optimizer state; ``tp`` ranks share the work of each Linear."""

    fsdp: int = 1
    tp: int = 1

    def __str__(self) -> str:
        return f"fsdp={self.fsdp},tp={self.tp}"


def ranks_of(said: str | Ranks) -> Ranks:
    """What is said as ``"fsdp=8"``, ``"tp=2"`` or ``"fsdp=8,tp=2"``; ``ReportError`` for anything else."""
    wrong = ReportError(f"a shard must be such as fsdp=8, tp=2 or fsdp=8,tp=2, with numbers from 1 on; got {said!r}")
    if isinstance(said, Ranks):
        said = str(said)
    if not isinstance(said, str):
        raise wrong
    found: dict[str, int] = {}
    for part in said.split(","):
        name, _, number = part.strip().partition("=")
        if (
            name not in Ranks._fields
            or name in found
            or not (number.isascii() and number.isdecimal())
            or int(number) < 1
        ):
            raise wrong
        found[name] = int(number)
    ranks = Ranks(**found)
    if ranks.fsdp * ranks.tp > _MOST:
        raise ReportError(f"a shard is one of at most {_MOST} ranks; got {said!r}")
    return ranks
