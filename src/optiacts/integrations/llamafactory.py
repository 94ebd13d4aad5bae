"""LLaMA-Factory v1: a kernel called ``optiacts``.

    kernel_config:
      name: optiacts

and a line that imports this module before LLaMA-Factory reads its configuration, which knows no plugins by path:
``python -c "import optiacts.integrations.llamafactory; from llamafactory.cli import main; main()" train
config.yaml``.

Kernels are applied after adapters are added and before FSDP wraps the model.
"""

from __future__ import annotations

import logging
from typing import Any

from llamafactory.v1.plugins.model_plugins.kernels.interface import KernelPlugin
from torch import nn

import optiacts

logger = logging.getLogger(__name__)


@KernelPlugin("optiacts").register()
def convert(model: nn.Module, include_kernels: Any = None, **others: Any) -> nn.Module:
    """Converts ``model`` and returns it.

    Args:
        model: LLaMA-Factory's model.
        include_kernels: as elsewhere in LLaMA-Factory: None, True or ``"auto"`` for all, or some of ``gated``,
            ``dropout``, ``norms`` and ``chains``, with commas in between; activations are always converted.
        others: what LLaMA-Factory may hand on to kernels besides; not used.

    Raises:
        ValueError: ``include_kernels`` names something else.
    """
    parts = ("gated", "dropout", "norms", "chains")
    if include_kernels is None or include_kernels is True or include_kernels == "auto":
        chosen = list(parts)
    else:
        chosen = [name.strip() for name in str(include_kernels).split(",")]
    unknown = [name for name in chosen if name not in parts]
    if unknown:
        raise ValueError(f"include_kernels must name some of {', '.join(parts)}; got {include_kernels!r}")
    options: dict[str, Any] = {part: part in chosen for part in parts}
    report = optiacts.convert(model, **options)
    logger.info("optiacts: %d modules converted, %d left alone", len(report.converted), len(report.left))
    return model
