"""Memory layouts: the order of dimensions in which a tensor is contiguous."""

from __future__ import annotations

from torch import Tensor


def memory_order(x: Tensor) -> tuple[int, ...] | None:
    """The permutation of dimensions, largest stride first, in which PyTorch lays out ``f(x)`` contiguously.

    None if that is the order the dimensions have already, or if ``x`` repeats elements (a stride of 0), which
    leaves the order to PyTorch. Kernels then meet channels_last and transposed tensors as contiguous ones.
    """
    if x.is_contiguous() or any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape, strict=True)):
        return None
    strides = x.stride()
    given = [d for d in range(x.ndim) if x.shape[d] != 1]  # the stride of a dimension of size 1 means nothing
    sought = dict(zip(given, sorted(given, key=lambda d: -strides[d]), strict=True))
    order = tuple(sought.get(d, d) for d in range(x.ndim))
    return None if order == tuple(range(x.ndim)) else order


def permute(x: Tensor, order: tuple[int, ...] | None) -> Tensor:
    """``x`` with its dimensions in ``order``."""
    return x if order is None else x.permute(order)


def restore(x: Tensor, order: tuple[int, ...] | None) -> Tensor:
    """Undoes ``permute``."""
    return x if order is None else x.permute([order.index(d) for d in range(len(order))])
