"""The curves: one description per activation. This package knows no autograd and no backend."""

from __future__ import annotations

from optiacts.curves import gelu, gelu_tanh, mish, quick_gelu, relu, silu
from optiacts.curves._curve import Curve

CURVES: dict[str, Curve] = {module.CURVE.name: module.CURVE for module in (gelu, gelu_tanh, silu, mish, quick_gelu)}

GATES: dict[str, Curve] = {**CURVES, relu.CURVE.name: relu.CURVE}


def get(name: str) -> Curve:
    """The curve called ``name``; ``ValueError`` lists the known ones."""
    try:
        return CURVES[name]
    except KeyError:
        raise ValueError(f"curve must be one of {', '.join(CURVES)}; got {name!r}") from None


def gate(name: str) -> Curve:
    """The curve called ``name``, among those that can gate; ``ValueError`` lists them."""
    try:
        return GATES[name]
    except KeyError:
        raise ValueError(f"curve must be one of {', '.join(GATES)}; got {name!r}") from None


__all__ = ["CURVES", "GATES", "Curve", "gate", "get"]
