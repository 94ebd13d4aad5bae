"""TRL's SFTTrainer, with and without adapters: it is a Trainer, so it takes the same callback.

pip install trl peft
python examples/trainers/trl_sft.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from datasets import IterableDataset
from peft import LoraConfig
from tiny import STEPS, batch, new_model, text
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import optiacts
from optiacts.integrations.hf_trainer import ConvertCallback


def rows() -> Iterator[dict[str, list[int]]]:
    """Sequences that are tokens already."""
    for row in text():
        yield {name: ids.tolist() for name, ids in row.items()}


def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token."""
    words = models.WordLevel({str(i): i for i in range(64)}, unk_token="0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="0", eos_token="1")


def train(callbacks: list[ConvertCallback], adapters: LoraConfig | None) -> tuple[list[float], int]:
    """The losses of a training, and the bytes that autograd holds in a step of it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # on by default: then little is held anyway
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = SFTTrainer(
            new_model(),
            args=arguments,
            train_dataset=IterableDataset.from_generator(rows),
            processing_class=tokenizer(),
            peft_config=adapters,
            callbacks=list(callbacks),
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, optiacts.saved_memory(trainer.model.train(), **batch()).bytes


def main() -> dict[str, tuple[list[float], int]]:
    """Losses and bytes held for backward, without and with OptiActs."""
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    train([], None)  # the first training of a process draws its batches in another order
    found = {
        "PyTorch": train([], None),
        "OptiActs": train([ConvertCallback()], None),
        "PyTorch, LoRA": train([], lora),
        "OptiActs, LoRA": train([ConvertCallback()], lora),
    }
    for name, (losses, held) in found.items():
        print(f"{name:14}  {held:9,} bytes held  losses {' '.join(f'{loss:.6f}' for loss in losses)}")
    return found


if __name__ == "__main__":
    main()
