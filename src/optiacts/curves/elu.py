"""ELU: x where x > 0, else alpha (exp(x) - 1) (arXiv 1511.07289)."""

from torch.nn import functional

from optiacts.curves import _exponential
from optiacts.curves._curve import Curve, Family, spelled


def make(alpha: float = 1.0) -> Curve:
    """ELU with this value of -f(-infinity): 0 or more."""
    return Curve(
        name="elu",
        forward=lambda x: functional.elu(x, alpha),
        forward_=lambda x: functional.elu_(x, alpha),
        **_exponential.linear_unit("elu", alpha),
        modules=(spelled("torch.nn.ELU", alpha=alpha),),
        ops=("aten::elu",),
    )


FAMILY = Family(make, functions=("torch.nn.functional.elu",), modules=("torch.nn.ELU",), ops=("aten::elu",))
