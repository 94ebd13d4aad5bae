"""How the peak of a step grows with the batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """The bytes at the peak: ``here`` with ``batch`` samples, and the largest of fixed + n x slope with n others.

    The lines are those of two samples and more: one sample alone is broadcast, and takes another course.
    """

    batch: int
    here: float
    lines: tuple[tuple[float, float], ...]

    def of(self, batch: int) -> float:
        """The bytes at the peak of a step of ``batch`` samples."""
        return self.here if batch == self.batch else max(fixed + slope * batch for fixed, slope in self.lines)

    def largest(self, memory: int) -> int:
        """The most samples whose peak is at most ``memory``."""
        if any(fixed > memory for fixed, slope in self.lines if slope <= 0):
            found = 0
        else:
            found = min((int((memory - fixed) // slope) for fixed, slope in self.lines if slope > 0), default=0)
        return max(found, 0) if found > 1 or self.batch > 1 else int(self.here <= memory)
