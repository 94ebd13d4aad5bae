"""Forwards that are kernels of csrc/: an activation and its side bits in one pass, with PyTorch's own bits.

Such a kernel goes step by step as the vectors of PyTorch's op do. Where that computes the rest of a vector by itself,
with another exponential, the op is left alone. The trial at first use confirms the bits; without it no forward is
a kernel's (``unfuse``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts import replay
from optiacts.backends import native_library
from optiacts.backends.native_constants import DTYPES
from optiacts.curves import Curve
from optiacts.packing import packed_shape

GRAIN = 1 << 15  # numbers that a thread of PyTorch's takes at least
WHOLE_VECTORS = 64  # a multiple of what PyTorch computes at once, on any CPU

_unfused: set[tuple[str, torch.dtype]] = set()


def unfuse(curve: Curve, dtype: torch.dtype) -> bool:
    """Leaves the forward of ``curve`` to PyTorch's op, which may be all that is wrong; False if it was already."""
    if curve.native is None or (curve.name, dtype) in _unfused:
        return False
    _unfused.add((curve.name, dtype))
    replay.forget()
    return True


def is_fused(curve: Curve, x: Tensor) -> bool:
    """Whether a kernel has PyTorch's bits for a dense tensor: where that computes in whole vectors.

    Its threads share out ``x.numel()`` numbers, ``GRAIN`` to each at least.
    """
    if curve.native is None or (curve.name, x.dtype) in _unfused:
        return False
    count = x.numel()
    parts = min(torch.get_num_threads(), -(-count // GRAIN))
    return count > 0 and count % (WHOLE_VECTORS * parts) == 0


def are_rows_fused(curve: Curve, x: Tensor, rows: Tensor) -> bool:
    """The same of ``x`` whose ``rows``, views of it, lie apart: PyTorch then computes each by itself."""
    return is_fused(curve, x) and rows.data_ptr() == x.data_ptr() and rows.shape[-1] % WHOLE_VECTORS == 0


def forward_into(out: Tensor, rows: Tensor, curve: Curve) -> Tensor:
    """Writes the activation of ``rows``, contiguous, to where ``out`` lies; the packed side bits."""
    assert curve.native is not None
    bits = rows.new_empty(*packed_shape(rows.shape), dtype=torch.uint8)
    cols = rows.shape[-1]
    native_library.run(
        curve.native, DTYPES.index(rows.dtype), rows.data_ptr(), out.data_ptr(), bits.data_ptr(),
        rows.numel() // cols, cols, curve.threshold(rows.dtype), native_library.threads(),
    )  # fmt: skip
    return bits
