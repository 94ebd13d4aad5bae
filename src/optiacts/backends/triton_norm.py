"""The norms for CUDA and ROCm, in Triton; see ``optiacts.backends.triton`` for what is loaded when."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts.norms import Norm

name = "triton"
LONGEST_ROW = 16384  # that a program keeps in registers


def serves(channels: int) -> bool:
    """Whether there are kernels for rows so long."""
    return 0 < channels <= LONGEST_ROW


def norm_statistics(
    x: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None, norm: Norm
) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean and rstd of x, and the remainder bits of y if it has some."""
    from optiacts.backends.triton import norm_launch

    return norm_launch.statistics(x, y, scale, shift, norm)


def norm_backward(
    grad: Tensor,
    kept: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    columns: Tensor | None,
    rescued: Tensor | None,
    bits: Tensor | None,
    norm: Norm,
    output: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and shift."""
    from optiacts.backends.triton import norm_launch

    saved = (grad, kept, mean, rstd, scale, shift, columns, rescued, bits)
    return norm_launch.backward(*saved, norm, output, dtype)
