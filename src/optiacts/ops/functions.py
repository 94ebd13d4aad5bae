"""What the autograd Functions of all families share."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from optiacts._torch import forward_level
from optiacts.recording import Form


@dataclass(frozen=True)
class Decoding(Form):
    """How to read what is saved. One object, because vmap would take a list among the arguments apart."""

    name: str  # of the curve
    order: tuple[int, ...]  # the memory order of the dimensions: see ``optiacts.layouts``
    scale: float | None = None  # by which a dropout after it has multiplied what it kept


decoding = functools.lru_cache(maxsize=1 << 12)(Decoding)
"""``Decoding`` for eager calls, of which many read alike."""


def unchanged(output: Tensor) -> Tensor:
    """What a Function saves of its output.

    Eager, it is the output, and a change in place is found out in backward. Compilers find out nothing: they would
    compute with what it was changed to. They are given a copy, which they leave out where nothing is changed.
    """
    return output.clone() if torch.compiler.is_compiling() else output


def differentiable() -> bool:
    """Whether someone may differentiate what is computed now."""
    return (torch.is_grad_enabled() or forward_level() >= 0) and not torch.compiler.is_compiling()
