"""The chains for CUDA and ROCm, in Triton; see ``optiacts.backends.triton`` for what is loaded when."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from optiacts.backends import eager_chain, triton
from optiacts.chains import SavedChain
from optiacts.curves import Curve

name = "triton"


def serves(curve: Curve) -> bool:
    """Whether there are kernels for a curve."""
    return curve.triton_slope is not None and (bool(curve.decoder.side_bits) or curve.triton_input is not None)


def forward(z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """PyTorch's own output to the bit, and the packed side bits of ``rows(z)``."""
    from optiacts.backends.triton import launch

    laid = rows(z)
    if not curve.decoder.side_bits or not launch.fused(curve, z.dtype, z.device):
        return curve.forward(z), side_bits(laid, curve)
    y = torch.empty_like(z)
    laid_y = rows(y)
    if laid.data_ptr() != z.data_ptr() or laid_y.data_ptr() != y.data_ptr():  # copies
        return curve.forward(z), launch.pack(laid, curve)
    return y, launch.forward(laid, laid_y, curve)


def forward_(z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The same, beside z: in its place it would take two kernels."""
    return forward(z, curve, rows)


def side_bits(rows: Tensor, curve: Curve) -> Tensor:
    """The packed side bits of the activation's input."""
    from optiacts.backends.triton import launch

    return launch.pack(rows, curve) if curve.decoder.side_bits else eager_chain.side_bits(rows, curve)


def excess(z: Tensor, furthest: float) -> Tensor:
    """See ``eager_chain.excess``."""
    from optiacts.backends.triton import chain_launch

    return chain_launch.excess(z, furthest)


def chain_backward(grad: Tensor, saved: SavedChain, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """All three gradients; see ``eager_chain.chain_backward``."""
    given = (saved.rstd, saved.scale, saved.shift, saved.mean)
    if any(t is not None and t.dtype is not torch.float32 for t in given) or not triton.dtypes >= {grad.dtype, dtype}:
        return eager_chain.chain_backward(grad, saved, dtype)
    from optiacts.backends.triton import chain_launch

    return chain_launch.backward(grad, saved, dtype)


__all__ = ["chain_backward", "excess", "forward", "name", "serves", "side_bits"]
