"""ReLU: max(x, 0). Not unimodal: as a gate (ReGLU) it needs no side bit, for its value tells its derivative."""

import torch

from optiacts.curves._curve import Curve

CURVE = Curve(
    name="relu",
    forward=torch.relu,
    forward_=torch.relu_,
    function=lambda x, m: x * (x > 0),
    derivative=lambda x, m: 0 * x + (x > 0),
    second_derivative=lambda x, m: 0 * x,
    unimodal=False,
)
