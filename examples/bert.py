"""A Hugging Face BERT with its GELUs converted: the same loss, fewer bytes, the same training.

pip install transformers
python examples/bert.py
"""

from __future__ import annotations

import torch
import transformers

import optiacts

STEPS = 10


def new_model() -> torch.nn.Module:
    """A small BERT with initial weights that are the same each time."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512
    )
    return transformers.BertForMaskedLM(config).train()


def train(model: torch.nn.Module, steps: int) -> list[float]:
    """The losses of a few steps on made-up text, in which each token tells the next one."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        ids = (torch.randint(0, 1000, (8, 1)) + 7 * torch.arange(64)) % 1000
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Saved bytes and losses, before and after."""
    ids = torch.zeros(8, 64, dtype=torch.long)
    inputs = {"input_ids": ids, "labels": ids}

    before = new_model()
    print(optiacts.report(before, **inputs))  # predicted on fake tensors: nothing is run

    after = new_model()
    print(optiacts.convert(after))
    saved = [optiacts.saved_memory(model, **inputs).bytes for model in (before, after)]
    print(f"\nmeasured: {saved[0]:,} -> {saved[1]:,} bytes held for backward ({saved[1] / saved[0] - 1:+.1%})\n")

    losses = train(before, STEPS), train(after, STEPS)
    print("step   PyTorch  OptiActs")
    for step in range(0, STEPS, 2):
        print(f"{step:4}  {losses[0][step]:8.5f}  {losses[1][step]:8.5f}")


if __name__ == "__main__":
    main()
