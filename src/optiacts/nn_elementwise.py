"""The other activations as modules: subclasses of their torch.nn twins, with the same arguments and state."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts import functional_elementwise as functional


class ELU(torch.nn.ELU):
    """``torch.nn.ELU`` that keeps its output; see ``optiacts.elu``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.elu(input, self.alpha, self.inplace)


class CELU(torch.nn.CELU):
    """``torch.nn.CELU`` that keeps its output; see ``optiacts.celu``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.celu(input, self.alpha, self.inplace)


class SELU(torch.nn.SELU):
    """``torch.nn.SELU`` that keeps its output; see ``optiacts.selu``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.selu(input, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` that keeps its output; see ``optiacts.leaky_relu``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.leaky_relu(input, self.negative_slope, self.inplace)


class PReLU(torch.nn.PReLU):
    """``torch.nn.PReLU`` that keeps its output; see ``optiacts.prelu``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.prelu(input, self.weight)


class Softplus(torch.nn.Softplus):
    """``torch.nn.Softplus`` that keeps its output; see ``optiacts.softplus``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softplus(input, self.beta, self.threshold)


class LogSigmoid(torch.nn.LogSigmoid):
    """``torch.nn.LogSigmoid`` that keeps its output; see ``optiacts.logsigmoid``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.logsigmoid(input)


class Softsign(torch.nn.Softsign):
    """``torch.nn.Softsign`` that keeps its output; see ``optiacts.softsign``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softsign(input)


class Hardsigmoid(torch.nn.Hardsigmoid):
    """``torch.nn.Hardsigmoid`` that keeps its output; see ``optiacts.hardsigmoid``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.hardsigmoid(input, self.inplace)


class Hardswish(torch.nn.Hardswish):
    """``torch.nn.Hardswish`` that keeps its output and one bit per element; see ``optiacts.hardswish``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.hardswish(input, self.inplace)


class Hardtanh(torch.nn.Hardtanh):
    """``torch.nn.Hardtanh`` that keeps its output; see ``optiacts.hardtanh``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.hardtanh(input, self.min_val, self.max_val, self.inplace)


class ReLU6(torch.nn.ReLU6):
    """``torch.nn.ReLU6`` that keeps its output; see ``optiacts.relu6``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.hardtanh(input, self.min_val, self.max_val, self.inplace)


class Softshrink(torch.nn.Softshrink):
    """``torch.nn.Softshrink`` that keeps its output; see ``optiacts.softshrink``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softshrink(input, self.lambd)


class Hardshrink(torch.nn.Hardshrink):
    """``torch.nn.Hardshrink`` that keeps its output; see ``optiacts.hardshrink``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.hardshrink(input, self.lambd)


class Threshold(torch.nn.Threshold):
    """``torch.nn.Threshold`` that keeps its output; see ``optiacts.threshold``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.threshold(input, self.threshold, self.value, self.inplace)


class _Plain(torch.nn.Module):
    """An activation that torch.nn lacks.

    Args:
        inplace: write the result into the storage of the input.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class ReLUSquared(_Plain):
    """max(x, 0)^2, keeping its output; see ``optiacts.relu_squared``.

    Args:
        inplace: write the result into the storage of the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu_squared(input, self.inplace)


class Swish(_Plain):
    """x * sigmoid(beta x), keeping its output and one bit per element; see ``optiacts.swish``.

    Args:
        beta: a number; see ``optiacts.swish``.
        inplace: write the result into the storage of the input.
    """

    def __init__(self, beta: float = 1.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        self.beta = beta

    def forward(self, input: Tensor) -> Tensor:
        return functional.swish(input, self.beta, self.inplace)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (f"beta={self.beta}", super().extra_repr())))


class Laplace(torch.nn.Module):
    """The normal distribution's cumulative function, keeping its output; see ``optiacts.laplace``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.laplace(input)


class ClippedGELU(torch.nn.Module):
    """GELU held below 10, keeping its output and one bit per element; see ``optiacts.clipped_gelu``."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.clipped_gelu(input)
