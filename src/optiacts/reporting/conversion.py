"""The stages of conversion that a report compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from optiacts.conversion import convert, revert
from optiacts.held.sharing import ActivationSite, without_gain
from optiacts.reporting import kinds


@dataclass(frozen=True)
class Conversion:
    """One stage: the arguments of ``convert``, and the kind of storage without which there is nothing to show."""

    options: dict[str, Any]
    shrinks: str | None = None


CONVERSIONS: dict[str, Conversion] = {
    "activations converted": Conversion({"gated": False, "norms": False}),
    "gated MLPs converted": Conversion({"norms": False}, kinds.GATED),
    "norms converted": Conversion({}, kinds.NORMS),
}
"""By name, each with all that the ones before it convert."""


def convert_stage(model: torch.nn.Module, stage: str, sites: tuple[ActivationSite, ...]) -> None:
    """Converts what the stage says, of the activations those for which it pays."""
    paths = without_gain(sites)
    revert(model)
    convert(model, exclude=lambda path, module: path in paths, **CONVERSIONS[stage].options)


__all__ = ["CONVERSIONS", "Conversion", "convert_stage", "revert"]
