"""Mish, written out as x * tanh(softplus(x)): timm's ``Mish``."""

import torch
from torch import Tensor
from torch.nn import functional

from optiacts.curves import mish
from optiacts.curves._variant import variant_of


def _forward(x: Tensor) -> Tensor:
    return x * torch.tanh(functional.softplus(x))


CURVE = variant_of(mish.CURVE, "mish_python", _forward)
