"""axolotl: a plugin that converts the model once it is loaded, adapters and all.

    plugins:
      - optiacts.integrations.axolotl.OptiActsPlugin
    optiacts_exclude: ["*.lm_head"]  # optional: name patterns, as of optiacts.convert

``post_model_load`` comes after adapters are added and before the trainer is made, so before FSDP and DDP.
"""

from __future__ import annotations

import logging
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel
from torch import nn

import optiacts

logger = logging.getLogger(__name__)

# settings of axolotl's that replace the very layers, so that there would be nothing left to convert
_CONFLICTS = ("liger_glu_activation", "lora_mlp_kernel", "tiled_mlp")


class OptiActsArgs(BaseModel):  # type: ignore[misc]
    """What axolotl's YAML may say: arguments of ``optiacts.convert``."""

    optiacts_include: list[str] | None = None
    optiacts_exclude: list[str] | None = None
    optiacts_gated: bool = True
    optiacts_dropout: bool = True
    optiacts_norms: bool = True
    optiacts_autocast: bool = False


class OptiActsPlugin(BasePlugin):  # type: ignore[misc]
    """Converts axolotl's model. ``report`` then says what was done."""

    report: optiacts.ConversionReport | None = None

    def get_input_args(self) -> str:
        """The settings that this plugin adds to axolotl's YAML."""
        return f"{__name__}.{OptiActsArgs.__name__}"

    def post_model_load(self, cfg: Any, model: nn.Module) -> None:
        """Once the model is there, with its adapters."""
        taken = [name for name in _CONFLICTS if getattr(cfg, name, None)]
        if taken:
            logger.warning("optiacts: %s replaces MLPs by its own, which are not converted", ", ".join(taken))
        given = {name: getattr(cfg, name, None) for name in OptiActsArgs.model_fields}
        options = OptiActsArgs(**{name: value for name, value in given.items() if value is not None})
        arguments = {name.removeprefix("optiacts_"): value for name, value in options}
        self.report = optiacts.convert(model, **arguments)
        logger.info(
            "optiacts: %d modules converted, %d left alone", len(self.report.converted), len(self.report.left)
        )
