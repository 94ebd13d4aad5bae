"""Trains the same GPT as it is and changed, step by step in turns, and measures both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import nn

from optiacts.demo.gpt import GPT
from optiacts.demo.text import batches, corpus
from optiacts.held.memory import saved_memory

BATCH, CONTEXT, LEARNING_RATE, DROPOUT = 8, 128, 2e-3, 0.1
Change = Callable[[nn.Module], object]  # done to a fresh model before it is trained


@dataclass
class Run:
    """One training: what was measured, nothing assumed."""

    name: str
    saved_bytes: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """The median time of a step, the first few left out."""
        return median(self.seconds[min(5, len(self.seconds) - 1) :])

    def apart(self, other: Run) -> list[float]:
        """This loss less the other's, step by step."""
        return [mine - theirs for mine, theirs in zip(self.losses, other.losses, strict=True)]

    def mean_loss(self, steps: slice) -> float:
        """The mean loss over some of the steps."""
        return sum(self.losses[steps]) / len(self.losses[steps])


class Trainer:
    """A GPT, its optimizer, and the record of its training."""

    def __init__(self, name: str, change: Change, seed: int) -> None:
        torch.manual_seed(seed)
        self.run = Run(name)
        self.model = GPT(nn.GELU, context=CONTEXT, gated=True, dropout=DROPOUT)
        change(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)

    def step(self, window: torch.Tensor) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        torch.manual_seed(len(self.run.losses))  # both trainings draw the same dropouts
        loss = self.model.loss(window)
        loss.backward()
        self.optimizer.step()
        self.run.seconds.append(time.perf_counter() - start)
        self.run.losses.append(loss.item())


def compare(changes: dict[str, Change], steps: int, seed: int, progress: Callable[[list[Run]], None]) -> list[Run]:
    """Trains one model per change from the same seed on the same batches, alternating between them.

    ``progress`` is called with the runs after every round of steps.
    """
    trainers = [Trainer(name, change, seed) for name, change in changes.items()]
    runs = [trainer.run for trainer in trainers]
    windows = batches(corpus(), BATCH, CONTEXT, seed)
    for trainer in trainers:
        trainer.run.saved_bytes = saved_memory(trainer.model.loss, next(batches(corpus(), BATCH, CONTEXT, 0))).bytes
    for _ in range(steps):
        window = next(windows)
        for trainer in trainers:
            trainer.step(window)
        progress(runs)
    return runs
