"""Real English text that every Python carries: the reference documentation of `help()`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def corpus() -> Tensor:
    """The bytes of `pydoc_data.topics`, about 700 KB, as a uint8 tensor."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def batches(text: Tensor, batch: int, context: int, seed: int) -> Iterator[Tensor]:
    """Endless random windows of ``context + 1`` bytes: int64, (batch, context + 1)."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(context + 1)
    while True:
        starts = torch.randint(len(text) - context, (batch, 1), generator=generator)
        yield text[starts + offsets].long()
