"""What an entry of the zoo is, and the ways to build models and inputs that several fields share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, BATCH, LENGTH = 96, 2, 24

Build = Callable[[], nn.Module]
Inputs = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One model: how to build it, and its inputs (float ones in float32)."""

    name: str
    build: Build
    inputs: Inputs


def family(kind: str, model: str = "", **config: Any) -> Build:
    """The model of transformers' family ``kind`` with that configuration: its base model, or the class ``model``."""

    def build() -> nn.Module:
        import transformers

        configuration = getattr(transformers, f"{kind}Config")(**config)
        if model:
            return getattr(transformers, model)(configuration)
        return transformers.AutoModel.from_config(configuration)

    return build


def diffuser(model: str, **config: Any) -> Build:
    """The class ``model`` of diffusers with that configuration."""

    def build() -> nn.Module:
        import diffusers

        return getattr(diffusers, model)(**config)

    return build


def chosen(build: Build, *names: str) -> Build:
    """The model with these of its outputs alone, in one tensor: for those whose first output says too little."""
    return lambda: _Chosen(build(), names)


class _Chosen(nn.Module):
    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, **inputs: Any) -> Tensor:
        output = self.model(**inputs)
        return torch.cat([getattr(output, name).flatten(1) for name in self.names], dim=1)


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH))}


def decoder_tokens() -> dict[str, Tensor]:
    return {"decoder_input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH))}


def normal(**shapes: tuple[int, ...]) -> Inputs:
    """Normally distributed tensors of these shapes, each with the batch in front."""
    return lambda: {name: torch.randn(BATCH, *shape) for name, shape in shapes.items()}


def ones(**shapes: tuple[int, ...]) -> Inputs:
    """Masks that hide nothing."""
    return lambda: {name: torch.ones(BATCH, *shape) for name, shape in shapes.items()}


def values(**given: Any) -> Inputs:
    """These values, lists as tensors."""
    return lambda: {name: torch.tensor(v) if isinstance(v, list) else v for name, v in given.items()}


def join(*parts: Inputs) -> Inputs:
    return lambda: {name: value for part in parts for name, value in part().items()}


def image(size: int = 32) -> Inputs:
    return normal(pixel_values=(3, size, size))


pair = join(tokens, decoder_tokens)
