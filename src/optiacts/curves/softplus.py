"""Softplus: log(1 + exp(beta x)) / beta, and x itself where beta x > threshold. Its slope is 1 - exp(-beta y)."""

from typing import Any

import torch
from torch.nn import functional

from optiacts.curves._curve import ClosedForm, Curve, CurveError, Family, Regions, spelled

LEAST_THRESHOLD = 15.0  # beyond it f jumps by less than 4e-7, and its slope as well


def make(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    """Softplus with this sharpness, and linear beyond this value of beta x."""
    if not (1e-3 <= beta <= 1e3 and threshold >= LEAST_THRESHOLD):
        raise CurveError(
            f"softplus: beta must be between 0.001 and 1000, and threshold at least {LEAST_THRESHOLD:g}, for its "
            f"output to tell its slope; got beta {beta}, threshold {threshold}"
        )

    def function(x: Any, m: Any) -> Any:
        return torch.where(beta * x > threshold, x, torch.logaddexp(beta * x, torch.zeros_like(x)) / beta)

    return Curve(
        name="softplus",
        forward=lambda x: functional.softplus(x, beta, threshold),
        forward_=lambda x: x.copy_(functional.softplus(x, beta, threshold)),
        function=function,
        derivative=lambda x, m: torch.sigmoid(beta * x),
        second_derivative=lambda x, m: beta * torch.sigmoid(beta * x) * torch.sigmoid(-beta * x),
        decoder=ClosedForm(
            slope=lambda y, left: torch.mul(y, -beta).expm1_().neg_(),
            inverse=lambda y, left: torch.where(
                beta * y > threshold, y, y + torch.log(-torch.expm1(-beta * y.clamp(min=0))) / beta
            ),
            regions=Regions(),
            triton=f"-expm1(y * {-float(beta)!r})",
        ),
        kinks=(threshold / beta,),
        modules=(spelled("torch.nn.Softplus", beta=beta, threshold=threshold),),
        ops=("aten::softplus",),
    )


FAMILY = Family(
    make, functions=("torch.nn.functional.softplus",), modules=("torch.nn.Softplus",), ops=("aten::softplus",)
)
