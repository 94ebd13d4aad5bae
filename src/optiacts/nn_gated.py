"""The gated products as modules without parameters: what stands between the projections of a gated MLP.

    h = SwiGLU()(self.gate_proj(x), self.up_proj(x))        or, fused,        h = SwiGLU()(self.gate_up_proj(x))

A fused projection has the gate in the first half of its last dimension (Llama, Phi-3), unlike ``torch.nn.GLU``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts import functional_gated


class SwiGLU(torch.nn.Module):
    """silu(gate) * up, keeping its output and one more tensor for backward; see ``optiacts.swiglu``."""

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return functional_gated.swiglu(gate, up)


class GEGLU(torch.nn.Module):
    """gelu(gate) * up, keeping its output and one more tensor for backward; see ``optiacts.geglu``.

    Args:
        approximate: ``"none"`` or ``"tanh"``.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return functional_gated.geglu(gate, up, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class ReGLU(torch.nn.Module):
    """relu(gate) * up, keeping its output and one more tensor for backward; see ``optiacts.reglu``."""

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return functional_gated.reglu(gate, up)


class ReGLUSquared(torch.nn.Module):
    """relu(gate)^2 * up, keeping its output and one more tensor for backward; see ``optiacts.reglu_squared``."""

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return functional_gated.reglu_squared(gate, up)


class ClampedSwiGLU(torch.nn.Module):
    """The gated product of GPT-OSS, keeping its output and one more tensor; see ``optiacts.clamped_swiglu``.

    Args:
        alpha: the factor inside the sigmoid.
        limit: the largest gate, and the largest size of up.
    """

    def __init__(self, alpha: float = 1.702, limit: float = 7.0) -> None:
        super().__init__()
        self.alpha, self.limit = alpha, limit

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return functional_gated.clamped_swiglu(gate, up, self.alpha, self.limit)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, limit={self.limit}"


class GLU(torch.nn.GLU):
    """``torch.nn.GLU`` that keeps its output and half of its input; see ``optiacts.glu``.

    Args:
        dim: the dimension that is halved.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional_gated.glu(input, self.dim)
