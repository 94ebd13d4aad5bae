"""The norms for CUDA and ROCm, in Triton; see ``optiacts.backends.triton`` for what is loaded when."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts.norms import Norm, Saved, Statistics

name = "triton"
LONGEST_ROW = 16384  # that a program keeps in registers


def serves(channels: int) -> bool:
    """Whether there are kernels for rows so long."""
    return 0 < channels <= LONGEST_ROW


def norm_statistics(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm,
    known: Statistics | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean and rstd of x, and the remainder bits of y if it has some. Its one pass over x makes all three."""
    from optiacts.backends.triton import norm_launch

    return norm_launch.statistics(x, y, scale, shift, norm)


def norm_backward(grad: Tensor, saved: Saved, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, in ``dtype``, of scale and of shift."""
    from optiacts.backends.triton import norm_launch

    return norm_launch.backward(grad, saved, dtype)
