"""What a fit is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class FitError(ValueError):
    """A curve that cannot be fitted within the accuracy contract; the message says what to change."""


@dataclass(frozen=True)
class Quality:
    """One figure of a fit and the most that it may be."""

    what: str
    found: float
    limit: float

    @property
    def share(self) -> float:
        """The part of the limit that is used up."""
        return self.found / self.limit

    def __str__(self) -> str:
        return f"{self.what} {self.found:.3g} of {self.limit:.3g}"


def first_within(attempts: Iterable[T], judge: Callable[[T], Sequence[Quality]]) -> T:
    """The first attempt that keeps all its limits; if none does, the best of them.

    Attempts come with rising effort: what a curve had from the first one stays as it is.
    """
    shares: list[tuple[float, T]] = []
    for attempt in attempts:
        share = max(quality.share for quality in judge(attempt))
        if share <= 1:
            return attempt
        shares.append((share, attempt))
    return min(shares, key=lambda found: found[0])[1]
