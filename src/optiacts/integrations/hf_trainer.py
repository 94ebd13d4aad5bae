"""transformers' Trainer, and TRL's trainers, which are built on it: a callback that converts the model.

    from optiacts.integrations.hf_trainer import ConvertCallback

    trainer = SFTTrainer(model, args=config, train_dataset=data, callbacks=[ConvertCallback()])

The trainer calls ``on_init_end`` at the end of its constructor: adapters are in place by then, and nothing has
wrapped the model yet. ``on_train_begin`` comes after FSDP, DDP and ``torch.compile``, too late to convert.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import TrainerCallback

import optiacts

logger = logging.getLogger(__name__)


class ConvertCallback(TrainerCallback):  # type: ignore[misc]
    """Converts the trainer's model as the trainer is made. ``report`` then says what was done.

    Args:
        options: keyword arguments of ``optiacts.convert``.

    Raises:
        RuntimeError: training begins with a model that the callback did not convert: the callback was added after the
            trainer was made, or ``model_init`` made another model. Call ``optiacts.convert`` yourself there.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._model: nn.Module | None = None
        self.report: optiacts.ConversionReport | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Before anything wraps the model."""
        self.report = optiacts.convert(model, **self._options)
        self._model = model
        logger.info(
            "optiacts: %d modules converted, %d left alone", len(self.report.converted), len(self.report.left)
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """After everything has wrapped it: only a look whether it is the model that was converted."""
        if self._model is None or not any(module is self._model for module in model.modules()):
            raise RuntimeError(
                "optiacts: ConvertCallback has not converted the model that is trained. It is too late now: FSDP, "
                "DDP and torch.compile may have wrapped it. Pass the callback to the trainer's constructor, in "
                "`callbacks`; with `model_init`, call optiacts.convert at its end instead"
            )
