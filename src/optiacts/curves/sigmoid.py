"""The logistic function. Its slope is y (1 - y); PyTorch keeps its output already. As a gate it makes a GLU."""

import math

import torch

from optiacts.curves._curve import ClosedForm, Curve, Regions, spelled
from optiacts.curves._logistic import logistic

CURVE = Curve(
    name="sigmoid",
    forward=torch.sigmoid,
    forward_=torch.sigmoid_,
    function=logistic,
    derivative=lambda x, m: logistic(x, m) * logistic(-x, m),
    second_derivative=lambda x, m: logistic(x, m) * logistic(-x, m) * (logistic(-x, m) - logistic(x, m)),
    decoder=ClosedForm(
        slope=lambda y, left: y * (1 - y),
        inverse=lambda y, left: y.clamp(0, 1).logit(),
        backward=lambda grad, y: torch.ops.aten.sigmoid_backward(grad, y),
        regions=Regions(end=(1.0, math.inf)),
        triton="y * (1.0 - y)",
    ),
    keeps_output=True,
    modules=(spelled("torch.nn.Sigmoid"),),
    functions=(spelled("torch.nn.functional.sigmoid"), spelled("torch.sigmoid")),
    ops=("aten::sigmoid",),
)
