"""The logistic function and the x * logistic(a x) family: SiLU has a = 1, QuickGELU a = 1.702."""

from __future__ import annotations

from typing import Any

from optiacts.curves._curve import Formula


def logistic(x: Any, m: Any) -> Any:
    """1 / (1 + exp(-x)); an overflowing exp gives the right 0."""
    return 1 / (1 + m.exp(-x))


def function(a: float) -> Formula:
    """x * s with s = logistic(a x)."""
    return lambda x, m: x * logistic(a * x, m)


def derivative(a: float) -> Formula:
    """s * (1 + a x (1 - s))."""
    return lambda x, m: logistic(a * x, m) * (1 + a * x * logistic(-a * x, m))


def second_derivative(a: float) -> Formula:
    """a s (1 - s) (2 + a x (1 - 2 s))."""

    def formula(x: Any, m: Any) -> Any:
        s, r = logistic(a * x, m), logistic(-a * x, m)
        return a * s * r * (2 + a * x * (r - s))

    return formula
