"""Lightning: a callback that converts the module.

    from optiacts.integrations.lightning import Convert

    trainer = Trainer(callbacks=[Convert()])

``setup`` comes before the strategy (DDP, FSDP) wraps the module and before the optimizers are made. It comes before
the module's ``configure_model`` too: layers that are made there have to be converted there.
"""

from __future__ import annotations

from typing import Any

import optiacts

try:
    from lightning.pytorch import Callback, LightningModule
except ImportError:
    from pytorch_lightning import Callback, LightningModule


class Convert(Callback):  # type: ignore[misc]
    """Converts the module as a fit begins. ``report`` then says what was done.

    Args:
        options: keyword arguments of ``optiacts.convert``.

    Raises:
        RuntimeError: there was nothing to convert, and ``configure_model`` will make layers after that. Call
            ``optiacts.convert(self)`` at the end of ``configure_model`` instead.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.report: optiacts.ConversionReport | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before the strategy wraps the module."""
        if stage != "fit":
            return
        report = optiacts.convert(pl_module, **self._options)
        made_later = type(pl_module).configure_model is not LightningModule.configure_model
        if self.report is None and made_later and not report.converted:
            raise RuntimeError(
                f"optiacts: {type(pl_module).__name__} makes its layers in configure_model, after callbacks' setup; "
                "call optiacts.convert(self) at the end of configure_model instead of using this callback"
            )
        self.report = report
