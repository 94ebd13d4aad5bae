"""ReLU: max(x, 0). As a gate (ReGLU) it needs no side bit, for its value tells its derivative."""

import torch

from optiacts.curves._curve import ClosedForm, Curve, Regions, spelled

CURVE = Curve(
    name="relu",
    forward=torch.relu,
    forward_=torch.relu_,
    function=lambda x, m: x * (x > 0),
    derivative=lambda x, m: 0 * x + (x > 0),
    second_derivative=lambda x, m: 0 * x,
    decoder=ClosedForm(
        slope=lambda y, left: ~left,
        inverse=lambda y, left: y,
        zero_is_flat=True,
        scale_free=True,
        survives_dropout=True,
        backward=lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
        regions=Regions(),
        triton="where(left, 0.0, like(y, 1.0))",
    ),
    keeps_output=True,
    modules=(spelled("torch.nn.ReLU"),),
    functions=(spelled("torch.nn.functional.relu"), spelled("torch.relu")),
    ops=("aten::relu",),
)
