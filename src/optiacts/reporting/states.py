"""What else is on the card: parameters, gradients, optimizer state. Sizes only; nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optiacts.held.memory import local_tensors, storage_key
from optiacts.reporting.optimizers import Cost


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


def states(model: torch.nn.Module, cost: Cost) -> States:
    """The bytes of ``model``'s parameters and buffers, of their gradients, and of the state of its optimizer."""
    state = (local for t in (*model.parameters(), *model.buffers()) for local in local_tensors(t))
    held = {storage_key(t): t.untyped_storage().nbytes() for t in state}
    trained = [local for p in model.parameters() if p.requires_grad for local in local_tensors(p)]
    return States(
        parameters=sum(held.values()),
        gradients=sum(p.numel() * p.itemsize for p in trained),
        optimizer=cost.state,
    )
