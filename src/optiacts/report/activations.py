"""What counts as an activation: the modules and the ops that have a curve, and those of OptiActs itself."""

from __future__ import annotations

import torch

_MODULES = {  # by class name, so that transformers need not be imported to recognise its classes
    "GELU": "GELU",
    "GELUActivation": "GELU",
    "GELUTanh": "GELU (tanh)",
    "NewGELUActivation": "GELU (tanh)",
    "FastGELUActivation": "GELU (tanh)",
    "PytorchGELUTanh": "GELU (tanh)",
    "QuickGELUActivation": "QuickGELU",
    "QuickGELU": "QuickGELU",
    "SiLU": "SiLU",
    "SiLUActivation": "SiLU",
    "Mish": "Mish",
    "MishActivation": "Mish",
}
_OPS = frozenset(("aten::gelu", "aten::silu", "aten::mish", "optiacts::activation_forward"))
_NODES = frozenset(("Gelu", "Silu", "Mish", "_Activation", "_DualActivation", "_InplaceActivation"))
GATED_NODES = frozenset(("_Gated", "_DualGated"))


def is_module(module: torch.nn.Module) -> bool:
    """Whether ``module`` is an activation that can be converted, or has been."""
    return type(module).__name__ in _MODULES


def is_layer(name: str) -> bool:
    """The same, by the name of the class."""
    return name in _MODULES


def module_name(module: torch.nn.Module) -> str:
    """What people call it."""
    return _MODULES[type(module).__name__]


def is_op(name: str) -> bool:
    """Whether the op called ``name`` is an activation."""
    return name in _OPS


def is_node(name: str) -> bool:
    """Whether the graph node called ``name`` differentiates an activation."""
    return name in _NODES
