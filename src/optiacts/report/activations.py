"""What counts as an activation: modules and ops that hold their input, and those of OptiActs in their place."""

from __future__ import annotations

import torch

from optiacts.conversion import sites

_OPS = frozenset(("aten::gelu", "aten::silu", "aten::mish", "optiacts::activation_forward"))
_NODES = frozenset(("Gelu", "Silu", "Mish", "_Activation", "_DualActivation", "_InplaceActivation"))
GATED_NODES = frozenset(("_Gated", "_DualGated", "_GatedFused", "_DualGatedFused"))


def curve(module: torch.nn.Module) -> str | None:
    """The curve of an activation module that can be converted, or has been; None for any other module."""
    found = sites.activation(module)
    return found.base if found is not None and found.keeps_input else None


def is_op(name: str) -> bool:
    """Whether the op called ``name`` is an activation."""
    return name in _OPS


def is_node(name: str) -> bool:
    """Whether the graph node called ``name`` differentiates an activation."""
    return name in _NODES
