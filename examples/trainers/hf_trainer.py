"""transformers' Trainer with a callback that converts the model; TRL's trainers take the same callback.

pip install transformers accelerate
python examples/trainers/hf_trainer.py
"""

from __future__ import annotations

import tempfile

from tiny import STEPS, batch, new_model, text
from transformers import Trainer, TrainingArguments

import optiacts
from optiacts.integrations.hf_trainer import ConvertCallback


def train(callbacks: list[ConvertCallback]) -> tuple[list[float], int]:
    """The losses of a training, and the bytes that autograd holds in a step of it."""
    model = new_model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=text(), callbacks=list(callbacks))
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, optiacts.saved_memory(model.train(), **batch()).bytes


def main() -> dict[str, tuple[list[float], int]]:
    """Losses and bytes held for backward, without and with OptiActs."""
    found = {"PyTorch": train([]), "OptiActs": train([ConvertCallback()])}
    for name, (losses, held) in found.items():
        print(f"{name:8}  {held:9,} bytes held  losses {' '.join(map(str, losses))}")
    return found


if __name__ == "__main__":
    main()
