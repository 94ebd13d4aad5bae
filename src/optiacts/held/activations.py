"""What counts as an activation: what holds its input, and what OptiActs puts in its place."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch.nn import Module

from optiacts import curves

CurveOf = Callable[[Module], str | None]
"""The curve of an activation module that holds its input, or did before conversion; None for any other module."""

_OURS = "OptiActs"  # in the names of our autograd nodes


def is_op(name: str) -> bool:
    """Whether the op called ``name`` is an activation."""
    return name == "optiacts::activation_forward" or name in curves.input_keeping_ops()


def is_node(name: str) -> bool:
    """Whether the graph node called ``name`` differentiates an activation."""
    ours = name.startswith(_OURS) and not is_dropout_node(name) and not name.startswith(f"{_OURS}Norm")
    return ours or name in _nodes(curves.input_keeping_ops())


def is_gated_node(name: str) -> bool:
    """Whether the graph node called ``name`` differentiates a gated product of ours."""
    return name.startswith(_OURS) and "Gated" in name


def is_dropout_node(name: str) -> bool:
    """Whether the graph node called ``name`` differentiates a dropout of ours, and nothing else."""
    return name.startswith(_OURS) and name.endswith("Dropout")


@functools.cache
def _nodes(ops: frozenset[str]) -> frozenset[str]:
    """The names that autograd gives to the derivatives of ``ops``: "Gelu" for "aten::gelu"."""
    return frozenset("".join(part.capitalize() for part in op.partition("::")[2].split("_")) for op in ops)
