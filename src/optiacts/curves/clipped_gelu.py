"""GELU, held below 10, as models that are quantised afterwards are trained (arXiv 2004.09602). The forward is the
expression of transformers, whose lower limit no output reaches."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from optiacts.curves import gelu
from optiacts.curves._curve import Curve, Formula, Unimodal, spelled

MOST = 10.0


def _forward(x: Tensor) -> Tensor:
    return torch.clip(functional.gelu(x), -MOST, MOST)


def _ending(formula: Formula, beyond: float) -> Formula:
    def ending(x: Any, m: Any) -> Any:
        return formula(x, m) * (x < MOST) + beyond * (x >= MOST)

    return ending


CURVE = Curve(
    name="clipped_gelu",
    forward=_forward,
    forward_=lambda x: x.copy_(_forward(x)),
    function=_ending(gelu.CURVE.function, MOST),
    derivative=_ending(gelu.CURVE.derivative, 0.0),
    second_derivative=_ending(gelu.CURVE.second_derivative, 0.0),
    decoder=Unimodal(tail=(0, 0.5), scaled=("gelu", 1.0), ends=MOST),
    kinks=(MOST,),
    modules=(spelled("transformers.activations.ClippedGELUActivation", min=-MOST, max=MOST),),
)
