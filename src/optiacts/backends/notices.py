"""What a user has to be told once, and `optiacts doctor` again: why fast kernels do not serve where they should."""

from __future__ import annotations

import warnings

_told: dict[str, None] = {}  # a set that keeps its order


class SlowPathWarning(UserWarning):
    """Kernels that should serve here do not; results are right, but take longer."""


def tell(message: str) -> None:
    """Warns of it, unless this process was told already."""
    if message not in _told:
        _told[message] = None  # before the warning, which may be an error
        warnings.warn(f"optiacts: {message}", SlowPathWarning, stacklevel=2)


def told() -> tuple[str, ...]:
    """All that this process was told."""
    return tuple(_told)
