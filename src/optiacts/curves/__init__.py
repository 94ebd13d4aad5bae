"""The curves: one file per activation, which says everything about it. This package knows no decoder, no autograd and
no backend."""

from __future__ import annotations

from optiacts.curves import _registry
from optiacts.curves._check import check
from optiacts.curves._curve import ClosedForm, Curve, CurveError, Family, Regions, Spelling, Unimodal, spelled
from optiacts.curves._registry import (
    CURVES,
    FAMILIES,
    GATES,
    VARIANTS,
    every_name,
    get,
    input_keeping_ops,
    member,
    register,
    register_family,
    spellings,
    unimodal,
    variant,
)

_registry.discover(__name__, __path__)

__all__ = [
    "CURVES",
    "FAMILIES",
    "GATES",
    "VARIANTS",
    "ClosedForm",
    "Curve",
    "CurveError",
    "Family",
    "Regions",
    "Spelling",
    "Unimodal",
    "check",
    "every_name",
    "get",
    "input_keeping_ops",
    "member",
    "register",
    "register_family",
    "spelled",
    "spellings",
    "unimodal",
    "variant",
]
