"""What the autograd Functions of all families share."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Decoding:
    """How to read what is saved. One object, because vmap would take a list among the arguments apart."""

    name: str  # of the curve
    order: tuple[int, ...]  # the memory order of the dimensions: see ``optiacts.layouts``
    scale: float | None = None  # by which a dropout after it has multiplied what it kept


decoding = functools.lru_cache(maxsize=1 << 12)(Decoding)
"""``Decoding`` for eager calls, of which many read alike."""


def differentiable() -> bool:
    """Whether someone may differentiate what is computed now."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()
