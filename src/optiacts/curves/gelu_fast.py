"""GELU, tanh approximation, as transformers' ``gelu_fast`` writes it out; its sqrt(2/pi) has 10 digits."""

import torch
from torch import Tensor

from optiacts.curves import gelu_tanh
from optiacts.curves._variant import variant_of


def _forward(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


CURVE = variant_of(gelu_tanh.CURVE, "gelu_fast", _forward)
