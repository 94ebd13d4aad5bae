"""The norms for CUDA and ROCm, in Triton; see ``optiacts.backends.triton`` for what is loaded when."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optiacts.norms import Guard, Norm, Saved, Statistics

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
    """mean and rstd of x, which may be ``known``, and the remainder bits of y if it has some, in one pass over x."""
    from optiacts.backends.triton import norm_launch

    return norm_launch.statistics(x, y, scale, shift, norm, known)


GUARDS = True


def norm_backward(
    grad: Tensor,
    saved: Saved,
    dtype: torch.dtype,
    of_factors: torch.dtype | None = None,
    guard: Guard | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, in ``dtype``, of scale and of shift, in ``of_factors`` or float32.

    With a scale and no shift nothing is the last. The kernel that reads the weight and the bias guards them as well.
    """
    from optiacts.backends.triton import norm_launch

    return norm_launch.backward(grad, saved, dtype, of_factors or torch.float32, guard)


def guarded(*arguments: Any) -> tuple[Tensor | None, Tensor | None]:
    """See ``eager_norm.guarded``, whose arguments these are: all of it in one launch."""
    from optiacts.backends.triton import guard_launch

    return guard_launch.guarded(*arguments)
