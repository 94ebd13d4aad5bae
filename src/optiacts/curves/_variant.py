"""Variants: the mathematics of a curve, evaluated as a chain of elementary operations.

Models carry activations written out in Python. Their results differ from PyTorch's fused op in the last
digits, and in a 16-bit dtype, where every step is rounded, in the first. A variant has that expression as its
forward, so that a converted model gives the bits it gave before; its 16-bit tables follow from that forward,
and everything else is the fused curve's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from optiacts.curves._curve import Curve


def variant_of(curve: Curve, name: str, forward: Callable[[Tensor], Tensor]) -> Curve:
    """``curve`` under a new name, with ``forward`` as its forward, and none of the names it goes by."""

    def forward_(x: Tensor) -> Tensor:
        return x.copy_(forward(x))

    return dataclasses.replace(
        curve,
        name=name,
        forward=forward,
        forward_=forward_,
        forward_out=None,
        base=curve.base or curve.name,
        tells_input=False,  # its steps round on their own
        modules=(),
        functions=(),
        ops=(),
        triton=None,
        cuda=None,
    )
