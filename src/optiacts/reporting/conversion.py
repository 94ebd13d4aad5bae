"""The stages of conversion that a report compares."""

from __future__ import annotations

from collections.abc import Callable

import torch

from optiacts.conversion import convert, revert
from optiacts.held.sharing import ActivationSite, without_gain


def convert_activations(model: torch.nn.Module, sites: tuple[ActivationSite, ...]) -> None:
    """Converts the activations for which it pays, and no gated products."""
    convert(model, exclude=_no_gain(sites), gated=False, norms=False)


def convert_gated(model: torch.nn.Module, sites: tuple[ActivationSite, ...]) -> None:
    """Converts the activations for which it pays, and the gated products with them."""
    revert(model)
    convert(model, exclude=_no_gain(sites), norms=False)


def _no_gain(sites: tuple[ActivationSite, ...]) -> Callable[[str, torch.nn.Module], bool]:
    paths = without_gain(sites)
    return lambda path, module: path in paths


__all__ = ["convert_activations", "convert_gated", "revert"]
