"""What else is on the card: parameters, gradients, optimizer state. Sizes only; nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from optiacts.held.memory import storage_key

# Bytes of state for one trainable element, given the bytes of the element itself.
OPTIMIZERS: dict[str, Callable[[int], int]] = {
    "adamw": lambda itemsize: 2 * itemsize,  # torch.optim.AdamW: two moments in the parameter's dtype
    "adamw-fp32": lambda itemsize: 8 + (4 if itemsize < 4 else 0),  # fp32 moments, and an fp32 master copy
    "adamw-8bit": lambda itemsize: 2,  # two moments of one byte, without their small scales
    "sgd": lambda itemsize: 0,
    "sgd-momentum": lambda itemsize: itemsize,
}


@dataclass(frozen=True)
class States:
    """Bytes that do not depend on the batch."""

    parameters: int  # with the buffers
    gradients: int
    optimizer: int

    @property
    def bytes(self) -> int:
        """Their sum."""
        return self.parameters + self.gradients + self.optimizer


def states(model: torch.nn.Module, optimizer: str) -> States:
    """The bytes of ``model``'s parameters and buffers, of their gradients, and of ``optimizer``'s state."""
    held = {storage_key(t): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    trained = [p for p in model.parameters() if p.requires_grad]
    return States(
        parameters=sum(held.values()),
        gradients=sum(p.numel() * p.itemsize for p in trained),
        optimizer=sum(p.numel() * OPTIMIZERS[optimizer](p.itemsize) for p in trained),
    )
