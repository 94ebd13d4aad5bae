"""torchtitan: the overrides that ``--override.imports`` activates, applied to one block of a model.

    torchtitan_train ... --override.imports \
        optiacts.integrations.torchtitan.feed_forward,optiacts.integrations.torchtitan.rms_norm

pip install torchtitan
python examples/trainers/torchtitan_overrides.py
"""

from __future__ import annotations

from typing import Any

import torch
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.nn_modules import RMSNorm

import optiacts
from optiacts.integrations import torchtitan

STEPS, WIDTH, HIDDEN = 4, 32, 96


def block(feed_forward: Any, rms_norm: Any) -> torch.nn.Module:
    """A norm and an MLP, built from torchtitan's configurations."""
    up = Linear.Config(in_features=WIDTH, out_features=HIDDEN)
    mlp = FeedForward.Config(w1=up, w2=Linear.Config(in_features=HIDDEN, out_features=WIDTH), w3=up)
    norm = RMSNorm.Config(normalized_shape=WIDTH)
    model = torch.nn.Sequential(rms_norm(norm).build(), feed_forward(mlp).build())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 6 + (parameter.ndim == 1))
    return model


def train(model: torch.nn.Module) -> tuple[list[float], int]:
    """The losses of a few steps, and the bytes that autograd holds in one."""
    torch.manual_seed(1)
    x, target = torch.randn(64, WIDTH), torch.randn(64, WIDTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, optiacts.saved_memory(model, x).bytes


def main() -> dict[str, tuple[list[float], int]]:
    """Losses and bytes held for backward, without and with OptiActs."""
    found = {
        "PyTorch": train(block(lambda config: config, lambda config: config)),
        "OptiActs": train(block(torchtitan.feed_forward, torchtitan.rms_norm)),
    }
    for name, (losses, held) in found.items():
        print(f"{name:8}  {held:9,} bytes held  losses {' '.join(f'{loss:.6f}' for loss in losses)}")
    return found


if __name__ == "__main__":
    main()
