"""GELU, tanh approximation, as transformers' ``gelu_new`` (GPT-2) and ``gelu_accurate`` write it out."""

import math

import torch
from torch import Tensor

from optiacts.curves import gelu_tanh
from optiacts.curves._variant import variant_of


def _forward(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


CURVE = variant_of(gelu_tanh.CURVE, "gelu_new", _forward)
