"""SiLU, written out as x * sigmoid(x): timm's ``Swish`` and many older models."""

import torch
from torch import Tensor

from optiacts.curves import silu
from optiacts.curves._variant import variant_of


def _forward(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


CURVE = variant_of(silu.CURVE, "swish", _forward)
