"""The polynomial with the least possible largest error, and float32 numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
STEPS = 60


def lawson(
    basis: Array, wanted: Array, tolerance: Array, cost: Callable[[Array], float], floor: float = 0.0
) -> tuple[float, Array]:
    """The combination of the columns of ``basis`` that comes nearest to ``wanted``, and its cost.

    Lawson's algorithm: least squares, again and again, each point's weight multiplied by its error, which is
    measured in units of ``tolerance``. Of all steps the one of least ``cost``, a function of the fitted values,
    is returned. ``floor``, a share of the largest error, keeps weights from vanishing.
    """
    columns, triangle = np.linalg.qr(basis / tolerance[:, None])  # so that plain normal equations serve
    target = wanted / tolerance
    weights, least, best = np.ones_like(wanted), np.inf, np.zeros(basis.shape[1])
    for _ in range(STEPS):
        weighted = columns * weights[:, None]
        solution = np.linalg.solve(columns.T @ weighted, target @ weighted)
        fitted = columns @ solution
        paid = cost(fitted * tolerance)
        if paid < least:
            least, best = paid, solution
        errors = np.abs(fitted - target)
        weights = weights * (errors + floor * errors.max())
        weights /= weights.mean()
    return float(least), np.linalg.solve(triangle, best)


def single(value: Any) -> float:
    """``value`` rounded to float32."""
    return float(np.float32(value))
