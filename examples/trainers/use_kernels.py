"""transformers with ``use_kernels=True``: its SiLU, RMSNorm and LlamaMLP mapped to OptiActs.

pip install transformers kernels
python examples/trainers/use_kernels.py
"""

from __future__ import annotations

import tempfile

import torch
from tiny import STEPS, batch, new_model
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

import optiacts
from optiacts.integrations import hf_kernels


def train(model: torch.nn.Module) -> list[float]:
    """The losses of a few steps; between them the model is evaluated, which maps its kernels anew."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = model.train()(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        model.eval()
    return losses


def main() -> dict[str, tuple[list[float], int]]:
    """Losses and bytes held for backward, without and with OptiActs."""
    hf_kernels.register(LlamaMLP)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        new_model().save_pretrained(folder)
        for name, use_kernels in (("PyTorch", False), ("OptiActs", True)):
            model = AutoModelForCausalLM.from_pretrained(folder, use_kernels=use_kernels)
            losses = train(model)
            model.train()(**batch())  # a norm or an MLP is converted in its first training step
            found[name] = losses, optiacts.saved_memory(model, **batch()).bytes
    for name, (losses, held) in found.items():
        print(f"{name:8}  {held:9,} bytes held  losses {' '.join(f'{loss:.6f}' for loss in losses)}")
    return found


if __name__ == "__main__":
    main()
