"""The hyperbolic tangent. Its slope is 1 - y^2; PyTorch keeps its output already."""

import torch

from optiacts.curves._curve import ClosedForm, Curve, Regions, spelled

CURVE = Curve(
    name="tanh",
    forward=torch.tanh,
    forward_=torch.tanh_,
    function=lambda x, m: m.tanh(x),
    derivative=lambda x, m: 1 - m.tanh(x) ** 2,
    second_derivative=lambda x, m: -2 * m.tanh(x) * (1 - m.tanh(x) ** 2),
    decoder=ClosedForm(
        slope=lambda y, left: (1 - y) * (1 + y),
        inverse=lambda y, left: y.clamp(-1, 1).atanh(),
        backward=lambda grad, y: torch.ops.aten.tanh_backward(grad, y),
        regions=Regions(sign=(1.0, -1.0), end=(1.0, -1.0), split=0.0),
        triton="(1.0 - y) * (1.0 + y)",
    ),
    keeps_output=True,
    worth_gating=False,
    modules=(spelled("torch.nn.Tanh"),),
    functions=(spelled("torch.nn.functional.tanh"), spelled("torch.tanh")),
    ops=("aten::tanh",),
)
