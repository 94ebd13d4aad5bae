"""The stages of conversion that a report compares."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optiacts.conversion import ConversionReport, revert
from optiacts.conversion.model import Options, convert_where_it_pays
from optiacts.held.sharing import ActivationSite, without_gain
from optiacts.reporting import kinds


@dataclass(frozen=True)
class Conversion:
    """One stage: options of ``convert``, and what there must be to show: a kind of storage, autocast.

    ``only_if_less``: neither is there if it holds as much as the stage before.
    """

    options: Options
    shrinks: str | None = None
    only_if_less: bool = False

    def shows(self, held: dict[str, int], autocast: bool) -> bool:
        """Whether there is anything to show where so much of each kind of storage is held."""
        return (self.shrinks is None or held[self.shrinks] > 0) and (autocast or not self.options.autocast)


CONVERSIONS: dict[str, Conversion] = {
    "activations converted": Conversion(Options(gated=False, dropout=False, norms=False, chains=False)),
    "gated MLPs converted": Conversion(Options(dropout=False, norms=False, chains=False), kinds.GATED),
    "dropouts converted": Conversion(Options(norms=False, chains=False), kinds.MASKS),
    "norms converted": Conversion(Options(chains=False), kinds.NORMS),
    "norms and activations in one": Conversion(Options(), kinds.NORMS, only_if_less=True),
    "casts shared": Conversion(Options(autocast=True)),
}
"""By name, each with all that the ones before it convert."""


def convert_stage(model: torch.nn.Module, stage: str, sites: tuple[ActivationSite, ...]) -> ConversionReport:
    """Converts what the stage says, of the activations those for which it pays or that dropouts take."""
    revert(model)
    return convert_where_it_pays(model, without_gain(sites), CONVERSIONS[stage].options)


__all__ = ["CONVERSIONS", "Conversion", "convert_stage", "revert"]
