"""Copies, conversions and zeros of small tensors on CPUs: in plans a kernel makes them, to the bit.

To call PyTorch's functions takes several times as long as to copy a thousand numbers. See ``recording.substitutes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optiacts.backends import native_library
from optiacts.backends.native_constants import DTYPES
from optiacts.recording import Kernel

_MOST = 1 << 14  # elements: of more PyTorch's threads make a copy faster


def copied(made: Tensor, given: Sequence[Any]) -> Kernel | None:
    """For ``given[0].clone()``, ``.to(dtype)`` and the like."""
    source = given[0]
    if not (_is_taken(source) and _is_taken(made) and source.shape == made.shape):
        return None
    if torch.float32 not in (source.dtype, made.dtype) and source.dtype is not made.dtype:
        return None
    of, to = DTYPES.index(source.dtype), DTYPES.index(made.dtype)
    return native_library.noted("copy", of, source, to, made, made.numel())


def cleared(made: Tensor, given: Sequence[Any]) -> Kernel | None:
    """For ``new_zeros`` and ``zeros_like``."""
    return native_library.noted("clear", made, made.nbytes) if _is_taken(made) else None


def _is_taken(tensor: Tensor) -> bool:
    return (
        tensor.is_cpu
        and tensor.dtype in DTYPES
        and 0 < tensor.numel() <= _MOST
        and tensor.is_contiguous()
        and native_library.lacking() is None
    )


SUBSTITUTES = {
    **dict.fromkeys(("clone", "to", "float", "bfloat16", "half"), copied),
    **dict.fromkeys(("new_zeros", "zeros_like"), cleared),
}
