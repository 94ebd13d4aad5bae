"""Hardtanh: x, held between min_val and max_val."""

from torch.nn import functional

from optiacts.curves import _clamped
from optiacts.curves._curve import Curve, CurveError, Family, spelled


def make(min_val: float = -1.0, max_val: float = 1.0) -> Curve:
    """Hardtanh with these limits."""
    if not min_val < max_val:
        raise CurveError(f"hardtanh: max_val must be larger than min_val; got {max_val} and {min_val}")
    return Curve(
        name="hardtanh",
        forward=lambda x: functional.hardtanh(x, min_val, max_val),
        forward_=lambda x: functional.hardtanh_(x, min_val, max_val),
        **_clamped.between(min_val, max_val),
        modules=(spelled("torch.nn.Hardtanh", min_val=min_val, max_val=max_val),),
        ops=("aten::hardtanh",),
    )


FAMILY = Family(
    make, functions=("torch.nn.functional.hardtanh",), modules=("torch.nn.Hardtanh",), ops=("aten::hardtanh",)
)
