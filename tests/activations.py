"""The activations besides the unimodal ones: their modules, PyTorch's, and what PyTorch holds for each."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optiacts


class Activation(NamedTuple):
    curve: str
    ours: nn.Module
    theirs: Callable[[Tensor], Tensor]
    held: int = 1  # tensors of its size by PyTorch, besides the output
    kinks: tuple[float, ...] = ()  # where PyTorch's slope and ours may be told apart by rounding alone


def laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107).div(0.282095 * 2.0**0.5)))


ACTIVATIONS = [
    Activation("elu(alpha=1.0)", optiacts.ELU(), nn.ELU()),
    Activation("elu(alpha=0.3)", optiacts.ELU(0.3), nn.ELU(0.3)),
    Activation("celu(alpha=2.0)", optiacts.CELU(2.0), nn.CELU(2.0)),
    Activation("selu", optiacts.SELU(), nn.SELU()),
    Activation("leaky_relu(negative_slope=0.01)", optiacts.LeakyReLU(), nn.LeakyReLU()),
    Activation("leaky_relu(negative_slope=1.5)", optiacts.LeakyReLU(1.5), nn.LeakyReLU(1.5)),
    Activation("softplus(beta=1.0, threshold=20.0)", optiacts.Softplus(), nn.Softplus()),
    Activation("softplus(beta=3.0, threshold=15.0)", optiacts.Softplus(3, 15), nn.Softplus(3, 15)),
    Activation("logsigmoid", optiacts.LogSigmoid(), nn.LogSigmoid(), 2),
    Activation("softsign", optiacts.Softsign(), nn.Softsign(), 2),
    Activation("hardsigmoid", optiacts.Hardsigmoid(), nn.Hardsigmoid()),
    Activation("hardtanh(min_val=-2.0, max_val=2.0)", optiacts.Hardtanh(-2, 2), nn.Hardtanh(-2, 2)),
    Activation("relu6", optiacts.ReLU6(), nn.ReLU6()),
    Activation("softshrink(lambd=0.5)", optiacts.Softshrink(), nn.Softshrink()),
    Activation("hardshrink(lambd=0.3)", optiacts.Hardshrink(0.3), nn.Hardshrink(0.3)),
    Activation("threshold(threshold=0.1, value=0.0)", optiacts.Threshold(0.1, 0.0), nn.Threshold(0.1, 0.0)),
    Activation("relu_squared", optiacts.ReLUSquared(), lambda x: F.relu(x) ** 2),
    Activation("laplace", optiacts.Laplace(), laplace),
    Activation("hardswish", optiacts.Hardswish(), nn.Hardswish()),
    Activation("clipped_gelu", optiacts.ClippedGELU(), lambda x: torch.clip(F.gelu(x), -10, 10), 2),
    Activation("swish(beta=1.3)", optiacts.Swish(1.3), lambda x: x * torch.sigmoid(1.3 * x), 2),
    Activation("swish(beta=0.4)", optiacts.Swish(0.4), lambda x: x * torch.sigmoid(0.4 * x), 2),
]
NAMED = {"argvalues": ACTIVATIONS, "ids": [activation.curve for activation in ACTIVATIONS]}
