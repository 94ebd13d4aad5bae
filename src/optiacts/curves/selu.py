"""SELU: scale times ELU, with the two constants that make networks normalise themselves (arXiv 1706.02515)."""

from torch.nn import functional

from optiacts.curves import _exponential
from optiacts.curves._curve import Curve, spelled

ALPHA, SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

CURVE = Curve(
    name="selu",
    forward=functional.selu,
    forward_=lambda x: functional.selu(x, inplace=True),
    **_exponential.linear_unit("selu", ALPHA, SCALE),
    modules=(spelled("torch.nn.SELU"),),
    functions=(spelled("torch.nn.functional.selu"), spelled("torch.selu")),
    ops=("aten::selu",),
)
