"""Swish with a number beta: x * logistic(beta x) (arXiv 1710.05941), which is SiLU(beta x) / beta.

PyTorch has no such op; the forward is the expression that people write.
"""

import torch

from optiacts.curves import _logistic
from optiacts.curves._curve import Curve, CurveError, Family, Unimodal

LEAST, MOST = 0.05, 20.0


def make(beta: float = 1.0) -> Curve:
    """Swish with this sharpness."""
    if not LEAST <= beta <= MOST:
        raise CurveError(f"swish: beta must be between {LEAST} and {MOST:g}; got {beta}")
    return Curve(
        name="swish",
        forward=lambda x: x * torch.sigmoid(beta * x),
        forward_=lambda x: x.mul_(torch.sigmoid(beta * x)),
        function=_logistic.function(beta),
        derivative=_logistic.derivative(beta),
        second_derivative=_logistic.second_derivative(beta),
        decoder=Unimodal(tail=(beta, 0), scaled=("silu", beta)),
    )


FAMILY = Family(make)
