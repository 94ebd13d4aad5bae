"""What the cases are made of."""

import copy

from torch import nn


class Mlp(nn.Module):
    """Everything that a forward of a case may want; each case writes its own."""

    def __init__(self, act: object = None) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.act = nn.GELU() if act is None else copy.deepcopy(act) if isinstance(act, nn.Module) else act


class Called(Mlp):
    """An activation, whatever it is, called as a module's attribute."""

    def forward(self, x):
        return self.down(self.act(self.gate(x)))
