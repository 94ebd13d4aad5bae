"""GELU, exact, as transformers' ``gelu_python`` writes it out."""

import math

import torch
from torch import Tensor

from optiacts.curves import gelu
from optiacts.curves._variant import variant_of


def _forward(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


CURVE = variant_of(gelu.CURVE, "gelu_python", _forward)
