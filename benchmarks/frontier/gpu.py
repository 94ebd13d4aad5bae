"""The frontier as a figure of `make gpu-check`: the same program on CUDA, within five minutes."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.frontier.__main__ import run
from benchmarks.frontier.contender import Setting
from benchmarks.frontier.methods import methods
from benchmarks.frontier.models import MODELS
from benchmarks.frontier.verdict import sentences

LIMIT = 300.0  # seconds, of which each model gets what the ones before it left
TURNS, ROUNDS = 25.0, 5  # seconds of turns for each model, and rounds at the least


def frontier(device: torch.device, dry: bool) -> list[dict[str, Any]]:
    """A row for each method on each model, and one with what they say of the claims; a dry run has its own test."""
    if dry:
        return []
    end = time.monotonic() + LIMIT
    found: list[dict[str, Any]] = []
    for number, model in enumerate(MODELS.values()):
        share = (end - time.monotonic()) / (len(MODELS) - number)
        made = run(model, Setting(device.type), methods(model, device.type), TURNS, ROUNDS, share - TURNS)
        found += [
            {
                "model": f"{row.model}, {row.size}",
                "method": row.method,
                "held MiB": row.held,
                "peak MiB": row.peak,
                "step ms": row.milliseconds,
                "time / PyTorch's": row.time,
                "bound": row.bound,
                "status": row.status or "good",
            }
            for row in made
        ]
        found.append(dict.fromkeys(found[-1], "") | {"model": model.name, "method": " ".join(sentences(made))})
    return found
