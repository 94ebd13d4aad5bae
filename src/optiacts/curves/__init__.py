"""The curves: one description per activation. This package knows no autograd and no backend."""

from __future__ import annotations

from optiacts.curves import (
    gelu,
    gelu_fast,
    gelu_new,
    gelu_python,
    gelu_tanh,
    mish,
    mish_python,
    quick_gelu,
    relu,
    silu,
    swish,
)
from optiacts.curves._curve import Curve

CURVES: dict[str, Curve] = {module.CURVE.name: module.CURVE for module in (gelu, gelu_tanh, silu, mish, quick_gelu)}

VARIANTS: dict[str, Curve] = {
    module.CURVE.name: module.CURVE for module in (gelu_python, gelu_new, gelu_fast, swish, mish_python)
}

GATES: dict[str, Curve] = {**CURVES, **VARIANTS, relu.CURVE.name: relu.CURVE}


def get(name: str) -> Curve:
    """The curve called ``name``; ``ValueError`` lists the known ones."""
    try:
        return CURVES[name] if name in CURVES else VARIANTS[name]
    except KeyError:
        raise ValueError(f"curve must be one of {', '.join((*CURVES, *VARIANTS))}; got {name!r}") from None


def gate(name: str) -> Curve:
    """The curve called ``name``, among those that can gate; ``ValueError`` lists them."""
    try:
        return VARIANTS[name] if name in VARIANTS else GATES[name]
    except KeyError:
        raise ValueError(f"curve must be one of {', '.join(GATES)}; got {name!r}") from None


__all__ = ["CURVES", "GATES", "VARIANTS", "Curve", "gate", "get"]
