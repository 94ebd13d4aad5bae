"""What a fit is worth."""

from __future__ import annotations

from dataclasses import dataclass


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
