"""Memory layouts: the order of dimensions in which a tensor is contiguous.

The ops take that order, so that a kernel meets a channels_last or transposed tensor as a contiguous one, and
so that the meaning of the packed bits does not hang on strides, which a compiler may change in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

Order = Sequence[int]  # a permutation of dimensions; empty means: as they are


def memory_order(x: Tensor) -> list[int]:
    """The permutation, largest stride first, in which PyTorch lays out ``f(x)`` contiguously.

    Empty if that is the order the dimensions have already, or if ``x`` repeats elements (a stride of 0), which
    leaves the order to PyTorch. Dimensions of size 1 keep their place, whatever their stride.
    """
    if x.is_contiguous():
        return []
    strides, shape = x.stride(), x.shape
    moving = [d for d in range(x.ndim) if shape[d] > 1]
    if any(strides[d] == 0 for d in moving):
        return []
    ordered = sorted(moving, key=lambda d: -strides[d])
    if ordered == moving:
        return []
    order = list(range(x.ndim))
    for place, d in zip(moving, ordered, strict=True):
        order[place] = d
    return order


def permute(x: Tensor, order: Order) -> Tensor:
    """``x`` with its dimensions in ``order``."""
    return x.permute(tuple(order)) if order else x


def restore(x: Tensor, order: Order) -> Tensor:
    """Undoes ``permute``."""
    return x.permute([order.index(d) for d in range(len(order))]) if order else x


def by_rows(x: Tensor) -> tuple[Tensor, int]:
    """``x`` and the stride of its rows, if it has equally spaced, dense rows; else a contiguous copy of it."""
    columns = x.shape[-1] if x.ndim else 1
    if x.is_contiguous():
        return x, columns
    leading = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    even = all(outer == size * stride for (_, outer), (size, stride) in itertools.pairwise(leading))
    if even and (x.stride(-1) == 1 or columns == 1):
        return x, leading[-1][1] if leading else columns
    return x.contiguous(), columns
