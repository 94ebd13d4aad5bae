"""The stages of conversion that a report compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from optiacts.conversion import revert
from optiacts.conversion.model import convert_where_it_pays
from optiacts.held.sharing import ActivationSite, without_gain
from optiacts.reporting import kinds


@dataclass(frozen=True)
class Conversion:
    """One stage: options of ``convert``, and the kind of storage without which there is nothing to show."""

    options: dict[str, Any]
    shrinks: str | None = None


CONVERSIONS: dict[str, Conversion] = {
    "activations converted": Conversion({"gated": False, "dropout": False, "norms": False}),
    "gated MLPs converted": Conversion({"dropout": False, "norms": False}, kinds.GATED),
    "dropouts converted": Conversion({"norms": False}, kinds.MASKS),
    "norms converted": Conversion({}, kinds.NORMS),
}
"""By name, each with all that the ones before it convert."""


def convert_stage(model: torch.nn.Module, stage: str, sites: tuple[ActivationSite, ...]) -> None:
    """Converts what the stage says, of the activations those for which it pays or that dropouts take."""
    revert(model)
    convert_where_it_pays(model, without_gain(sites), **CONVERSIONS[stage].options)


__all__ = ["CONVERSIONS", "Conversion", "convert_stage", "revert"]
