"""The activations as modules: subclasses of their torch.nn twins, with the same arguments and (empty) state."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts import functional


class GELU(torch.nn.GELU):
    """``torch.nn.GELU`` that keeps its output and one bit per element; see ``optiacts.gelu``.

    Args:
        approximate: ``"none"`` or ``"tanh"``.
        inplace: write the result into the storage of the input.
    """

    def __init__(self, approximate: str = "none", inplace: bool = False) -> None:
        super().__init__(approximate)
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return functional.gelu(input, self.approximate, self.inplace)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", inplace=True" if self.inplace else "")


class SiLU(torch.nn.SiLU):
    """``torch.nn.SiLU`` that keeps its output and one bit per element; see ``optiacts.silu``.

    Args:
        inplace: write the result into the storage of the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.silu(input, self.inplace)


class Mish(torch.nn.Mish):
    """``torch.nn.Mish`` that keeps its output and one bit per element; see ``optiacts.mish``.

    Args:
        inplace: write the result into the storage of the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.mish(input, self.inplace)


class QuickGELU(torch.nn.Module):
    """x * sigmoid(1.702 x), keeping its output and one bit per element; see ``optiacts.quick_gelu``.

    Args:
        inplace: write the result into the storage of the input.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return functional.quick_gelu(input, self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""
