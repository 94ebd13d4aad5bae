"""The norms for compiled graphs on GPUs: see traced.py.

The remainder bits of four elements are one byte here, not two planes: so few operations read them that compilers read
them twice, rather than write what they tell to memory in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from optiacts.backends import eager_norm
from optiacts.backends.traced import rounded, written
from optiacts.norms import Norm, Saved, Statistics

name = "traced"


def norm_statistics(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm,
    known: Statistics | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean and rstd of x, and the remainder bits of y, which tell what its rounding lost."""
    mean, rstd = norm.statistics(x) if known is None else known
    if not norm.remainder or y.element_size() > 2:
        return mean, rstd, None
    exact = eager_norm.unrounded(x, mean, rstd, scale, shift)
    return mean, rstd, _packed(written(eager_norm.quarters(exact, rounded(y))))


def norm_backward(
    grad: Tensor, saved: Saved, dtype: torch.dtype, of_factors: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx in ``dtype``; dw and db in ``of_factors``, or the precision of the arithmetic."""
    if saved.bits is not None:
        quarters = _unpacked(saved.bits, saved.kept.shape[-1])
        moved = saved.kept.float() + (quarters.float() * 0.25 - 0.375) * eager_norm.unit(saved.kept)
        saved = saved._replace(kept=moved, bits=None)
    return eager_norm.norm_backward(grad, saved, dtype, of_factors)


def _packed(quarters: Tensor) -> Tensor:
    fours = functional.pad(quarters, (0, -quarters.shape[-1] % 4))
    fours = fours.unflatten(-1, (fours.shape[-1] // 4, 4)).to(torch.int32)
    return (fours << _places(quarters)).sum(-1, dtype=torch.int32).to(torch.uint8)


def _unpacked(bits: Tensor, length: int) -> Tensor:
    return ((bits.unsqueeze(-1) >> _places(bits).to(torch.uint8)) & 3).flatten(-2)[..., :length]


def _places(like: Tensor) -> Tensor:
    return torch.arange(0, 8, 2, dtype=torch.int32, device=like.device)
