"""Chains for compiled graphs on GPUs: see traced.py."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts.backends import eager_chain
from optiacts.chains import SavedChain
from optiacts.curves import Curve
from optiacts.decoders import arithmetic

name = "traced"


def chain_backward(grad: Tensor, saved: SavedChain, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """dx in ``dtype`` and of the shape of ``grad``; dw and db in the precision of the arithmetic."""
    return eager_chain.chain_backward(grad, saved, dtype, slope=_slope, preimage=_preimage)


def _slope(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    return arithmetic.slope(y.float(), left, curve, y.dtype)


def _preimage(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    return arithmetic.preimage(y.float(), left, curve, y.dtype)
