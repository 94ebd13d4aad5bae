"""The exponential function. Its slope is its output, which PyTorch keeps already."""

import torch

from optiacts.curves._curve import ClosedForm, Curve, spelled

CURVE = Curve(
    name="exp",
    forward=torch.exp,
    forward_=torch.exp_,
    function=lambda x, m: m.exp(x),
    derivative=lambda x, m: m.exp(x),
    second_derivative=lambda x, m: m.exp(x),
    decoder=ClosedForm(
        slope=lambda y, left: y,
        inverse=lambda y, left: y.clamp(min=0).log(),
        backward=lambda grad, y: grad * y,
        triton="y",
    ),
    keeps_output=True,
    worth_gating=False,
    functions=(spelled("torch.exp"),),
    ops=("aten::exp",),
)
