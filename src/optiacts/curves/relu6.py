"""ReLU6: x, held between 0 and 6 (arXiv 1704.04861)."""

from torch.nn import functional

from optiacts.curves import _clamped
from optiacts.curves._curve import Curve, spelled

CURVE = Curve(
    name="relu6",
    forward=functional.relu6,
    forward_=lambda x: functional.relu6(x, inplace=True),
    **_clamped.between(0.0, 6.0),
    holds=1,
    modules=(spelled("torch.nn.ReLU6"),),
    functions=(spelled("torch.nn.functional.relu6"),),
    ops=("aten::relu6",),
)
