"""Trains the same GPT with two activations, step by step in turns, and measures both."""

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

BATCH, CONTEXT, LEARNING_RATE = 16, 128, 2e-3


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

    def mean_loss(self, steps: slice) -> float:
        """The mean loss over some of the steps."""
        return sum(self.losses[steps]) / len(self.losses[steps])


class Trainer:
    """A GPT, its optimizer, and the record of its training."""

    def __init__(self, name: str, activation: Callable[[], nn.Module], seed: int) -> None:
        torch.manual_seed(seed)
        self.run = Run(name)
        self.model = GPT(activation, context=CONTEXT)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)

    def step(self, window: torch.Tensor) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.model.loss(window)
        loss.backward()
        self.optimizer.step()
        self.run.seconds.append(time.perf_counter() - start)
        self.run.losses.append(loss.item())


def compare(
    activations: dict[str, Callable[[], nn.Module]], steps: int, seed: int, progress: Callable[[list[Run]], None]
) -> list[Run]:
    """Trains one model per activation from the same seed on the same batches, alternating between them.

    ``progress`` is called with the runs after every round of steps.
    """
    trainers = [Trainer(name, activation, seed) for name, activation in activations.items()]
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
