"""CELU: x where x > 0, else alpha (exp(x / alpha) - 1), whose slope does not jump (arXiv 1704.07483)."""

from torch.nn import functional

from optiacts.curves import _exponential
from optiacts.curves._curve import Curve, Family, spelled


def make(alpha: float = 1.0) -> Curve:
    """CELU with this value of -f(-infinity): above 0."""
    return Curve(
        name="celu",
        forward=lambda x: functional.celu(x, alpha),
        forward_=lambda x: functional.celu_(x, alpha),
        **_exponential.linear_unit("celu", alpha, input_scale=1 / alpha if alpha > 0 else 0.0),
        modules=(spelled("torch.nn.CELU", alpha=alpha),),
        ops=("aten::celu",),
    )


FAMILY = Family(make, functions=("torch.nn.functional.celu",), modules=("torch.nn.CELU",), ops=("aten::celu",))
