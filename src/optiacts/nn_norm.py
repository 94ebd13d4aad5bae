"""The norms as modules: subclasses of their torch.nn twins, with the same arguments and state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optiacts import functional_norm
from optiacts.ops.norm_graphs import loaded, register


class _Norm(torch.nn.Module):
    """What compiled graphs need: see ``optiacts.ops.norm_graphs``."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__new__(cls)
        register(module, "weight", "bias", 0.0)
        return module

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        loaded(self)


class LayerNorm(_Norm, torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` that keeps its output instead of its input; see ``optiacts.layer_norm``.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as of ``torch.nn.LayerNorm``.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional_norm.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(_Norm, torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` that keeps its output instead of its input; see ``optiacts.rms_norm``.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as of ``torch.nn.RMSNorm``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional_norm.rms_norm(x, self.normalized_shape, self.weight, self.eps)
