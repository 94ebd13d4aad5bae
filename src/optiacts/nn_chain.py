"""A norm and the activation after it as one module."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module

from optiacts import functional_chain


class NormActivation(Module):
    """``activation(norm(x))`` as one step that keeps its output alone; see ``optiacts.norm_activation``.

    Args:
        norm: a ``torch.nn`` BatchNorm, GroupNorm, InstanceNorm, LayerNorm or RMSNorm; the child ``norm``.
        activation: the name of a curve that tells its input: "silu", "mish", "leaky_relu", "elu(alpha=0.5)", "celu".

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
        ValueError: the output of the activation does not tell its input, as that of GELU does not.
        TypeError: ``norm`` is none of these.
    """

    def __init__(self, norm: Module, activation: str) -> None:
        super().__init__()
        self.activation = functional_chain.checked(norm, activation)
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        return functional_chain.chained(input, self.norm, self.activation)

    def extra_repr(self) -> str:
        return repr(self.activation)
