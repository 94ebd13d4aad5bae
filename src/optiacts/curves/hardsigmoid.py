"""Hard sigmoid: x / 6 + 1/2, held between 0 and 1 (arXiv 1905.02244)."""

import torch
from torch.nn import functional

from optiacts.curves._clamped import told_zero
from optiacts.curves._curve import ClosedForm, Curve, spelled

CURVE = Curve(
    name="hardsigmoid",
    forward=functional.hardsigmoid,
    forward_=lambda x: functional.hardsigmoid(x, inplace=True),
    function=lambda x, m: (x / 6 + 0.5).clamp(0, 1),
    derivative=lambda x, m: ((x > -3) & (x < 3)) / (6 * torch.ones_like(x)),
    second_derivative=lambda x, m: 0 * x,
    decoder=ClosedForm(
        slope=lambda y, left: ((y > 0) & (y < 1) | told_zero(y, left, 0.0)) / 6 + 0 * y,
        inverse=lambda y, left: 6 * y - 3,
        backward=lambda grad, y: torch.ops.aten.hardtanh_backward(grad, y, 0, 1).div_(6),
        zero_is_flat=True,
        triton="where((y > 0.0) & (y < 1.0) | (y == 0.0) & ~left, like(y, 1 / 6), 0.0)",
    ),
    kinks=(-3.0, 3.0),
    modules=(spelled("torch.nn.Hardsigmoid"),),
    functions=(spelled("torch.nn.functional.hardsigmoid"),),
    ops=("aten::hardsigmoid",),
)
