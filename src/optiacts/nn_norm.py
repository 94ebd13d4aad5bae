"""The norms as modules: subclasses of their torch.nn twins, with the same arguments and state."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts import functional_norm


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` that keeps its output instead of its input; see ``optiacts.layer_norm``.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as of ``torch.nn.LayerNorm``.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional_norm.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` that keeps its output instead of its input; see ``optiacts.rms_norm``.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as of ``torch.nn.RMSNorm``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional_norm.rms_norm(x, self.normalized_shape, self.weight, self.eps)
