"""From tensors to launches of the kernel that guards the weight and the bias of norms and chains."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from optiacts.backends.triton.guard_kernels import guard_kernel
from optiacts.backends.triton.start import Constants, start
from optiacts.chains import Chain
from optiacts.norms import Bounds, Norm

BLOCK = 1024  # channels at a time


def guarded(
    scale: Tensor | None,
    shift: Tensor | None,
    rescued: Tensor | None,
    norm: Norm | Chain,
    dtype: torch.dtype,
    poisoned: Tensor,
    lost: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """``scale`` and ``shift``, overwritten with NaN where something is wrong: see ``eager_norm.guarded``."""
    factor = scale if scale is not None else shift
    assert factor is not None
    channels, rescues = factor.numel(), 0 if rescued is None else rescued.numel()
    given = (scale, shift, rescued, lost, poisoned, channels, rescues, *_bounds(norm, dtype, channels))
    there = (scale is not None, shift is not None, rescued is not None, lost is not None)
    start(guard_kernel, factor.device, (1,), given, _launch(there))
    return scale, shift


@functools.cache
def _bounds(norm: Norm | Chain, dtype: torch.dtype, channels: int) -> Bounds:
    return norm.bounds(dtype, channels)


@functools.cache
def _launch(there: tuple[bool, ...]) -> Constants:
    names = ("SCALED", "SHIFTED", "RESCUED", "LOST")
    return Constants(dict(zip(names, there, strict=True)) | {"BLOCK": BLOCK, "num_warps": 4})
