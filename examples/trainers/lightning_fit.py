"""Lightning with a callback that converts the module.

pip install lightning transformers
python examples/trainers/lightning_fit.py
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from tiny import STEPS, batch, new_model, text

import optiacts
from optiacts.integrations.lightning import Callback, Convert, LightningModule

try:
    from lightning.pytorch import Trainer
except ImportError:
    from pytorch_lightning import Trainer


class Module(LightningModule):  # type: ignore[misc]
    """A small language model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = new_model()
        self.losses: list[float] = []

    def training_step(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = self.model(**rows).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(callbacks: list[Callback]) -> tuple[list[float], int]:
    """The losses of a training, and the bytes that autograd holds in a step of it."""
    module = Module()
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, torch.utils.data.DataLoader(text(), batch_size=4))
    return module.losses, optiacts.saved_memory(module.model.train(), **batch()).bytes


def main() -> dict[str, tuple[list[float], int]]:
    """Losses and bytes held for backward, without and with OptiActs."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    found = {"PyTorch": train([]), "OptiActs": train([Convert()])}
    for name, (losses, held) in found.items():
        print(f"{name:8}  {held:9,} bytes held  losses {' '.join(f'{loss:.6f}' for loss in losses)}")
    return found


if __name__ == "__main__":
    main()
