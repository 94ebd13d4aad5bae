"""accelerate needs no integration: convert before ``prepare``. A model that carries its hooks is converted as well.

pip install accelerate transformers
python examples/trainers/accelerate_loop.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator, dispatch_model
from tiny import STEPS, batch, new_model

import optiacts


def train(convert: bool, dispatch: bool = False) -> tuple[list[float], int]:
    """The losses of a training, and the bytes that autograd holds in a step of it."""
    model = new_model()
    if dispatch:  # as device_map="auto" does: a hook on every layer, whose forward then stands on the instance
        layers = {f"model.layers.{i}": "cpu" for i in range(2)}
        others = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
        model = dispatch_model(model, {**layers, **dict.fromkeys(others, "cpu")}, force_hooks=True)
    if convert:
        optiacts.convert(model)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    for _ in range(STEPS):
        loss = prepared(**batch()).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, optiacts.saved_memory(model, **batch()).bytes


def main() -> dict[str, tuple[list[float], int]]:
    """Losses and bytes held for backward, without and with OptiActs."""
    found = {"PyTorch": train(False), "OptiActs": train(True), "OptiActs, dispatched": train(True, dispatch=True)}
    for name, (losses, held) in found.items():
        print(f"{name:20}  {held:9,} bytes held  losses {' '.join(f'{loss:.6f}' for loss in losses)}")
    return found


if __name__ == "__main__":
    main()
