"""Dropouts: behind activations and products, by modules and functions, written and changed in every way."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.case import add, case
from tests.behaviour.parts import Mlp


class Dropped(Mlp):
    def __init__(self, act=None, p=0.3, inplace=False):
        super().__init__(act)
        self.dropout = nn.Dropout(p, inplace)
        self.rate = p


@case(saves=2, tools=True)
class Nested(Dropped):
    def forward(self, x):
        return self.down(self.dropout(self.act(self.gate(x))))


@case(saves=2)
class OverAVariable(Dropped):
    def forward(self, x):
        h = self.gate(x)
        h = self.act(h)
        h = self.dropout(h)
        return self.down(h)


@case(saves=2)
class ByFunction(Dropped):
    def forward(self, x):
        h = F.dropout(F.gelu(self.gate(x)), p=self.rate, training=self.training)
        return F.dropout(self.down(h), 0.1, self.training)


@case(saves=2)
class ByKeywords(Dropped):
    def forward(self, x):
        return self.down(F.dropout(training=self.training, input=self.act(self.gate(x))))


@case(saves=2)
class InPlace(Dropped):
    def forward(self, x):
        h = self.act(self.gate(x))
        h = F.dropout(h, 0.4, self.training, True)
        return self.down(h)


add("dropout: an in-place module", lambda: OverAVariable(inplace=True), saves=2)
add("dropout: of ReLU", lambda: OverAVariable(nn.ReLU()), saves=1)
add("dropout: of ReLU in place", lambda: OverAVariable(nn.ReLU(inplace=True)))
add("dropout: with p = 0", lambda: OverAVariable(p=0.0), saves=1)
add("dropout: with p = 1", lambda: OverAVariable(p=1.0))
add("dropout: in place with p = 1", lambda: OverAVariable(p=1.0, inplace=True))
add("dropout: of another p later", OverAVariable, change=lambda model, patch: setattr(model.dropout, "p", 0.8))
add("dropout: of p = 0 later", OverAVariable, change=lambda model, patch: setattr(model.dropout, "p", 0.0))
add("dropout: in place later", OverAVariable, change=lambda model, patch: setattr(model.dropout, "inplace", True))
add("dropout: in eval by itself", OverAVariable, change=lambda model, patch: model.dropout.eval())
add(
    "dropout: replaced later",
    OverAVariable,
    change=lambda model, patch: setattr(model, "dropout", nn.AlphaDropout(0.3)),
)
add("dropout: the activation replaced", OverAVariable, change=lambda model, patch: setattr(model, "act", nn.ELU()))


@case(saves=3, tools=True)
class OfAProduct(Dropped):
    def forward(self, x):
        gate = self.act(self.gate(x))
        up = self.up(x)
        h = gate * up
        h = self.dropout(h)
        return self.down(h)


@case(saves=3)
class OfANestedProduct(Dropped):
    def forward(self, x):
        return self.down(self.dropout(torch.mul(self.up(x), F.silu(self.gate(x)))))


@case(saves=3)
class OfAProductInPlace(Dropped):
    def forward(self, x):
        h = self.act(self.gate(x)) * self.up(x)
        F.dropout(x, 0.2)  # draws as well
        return self.down(F.dropout(h, 0.2, self.training, inplace=True))


@case()
class OfAProductThatBroadcasts(Dropped):
    def forward(self, x):
        h = self.act(self.gate(x)) * self.up(x)[:1]
        return self.down(self.dropout(h))


@case(invalid=True)
class TheFactorChangesBefore(Dropped):
    def forward(self, x):
        up = self.up(x)
        h = self.act(self.gate(x)) * up
        up += 1
        return self.down(self.dropout(h))


@case()
class TheGateChangesBefore(Dropped):
    def forward(self, x):
        gate = self.gate(x) * 1
        h = self.act(gate)
        gate.mul_(2)
        return self.down(self.dropout(h)) if self.training else h


@case()
class UsedTwice(Dropped):
    def forward(self, x):
        h = self.act(self.gate(x))
        return self.down(self.dropout(h)) + self.down(h)


@case()
class DroppedTwice(Dropped):
    def forward(self, x):
        h = self.act(self.gate(x))
        return self.down(self.dropout(h) - self.dropout(h))


@case()
class ChangedAfterwards(Dropped):
    def forward(self, x):
        h = self.dropout(self.act(self.gate(x)))
        h += 1
        return self.down(h)


@case()
class ChangedAfterwardsInAView(Dropped):
    def forward(self, x):
        h = F.dropout(self.act(self.gate(x)), self.rate, self.training)
        h.view(-1).mul_(2)
        return self.down(h)


@case()
class OnOneBranch(Dropped):
    def forward(self, x):
        h = self.act(self.gate(x))
        if x.shape[0] > 2:
            h = self.dropout(h)
        return self.down(h)


@case()
class InALoop(Dropped):
    def forward(self, x):
        for _ in range(3):
            h = self.act(self.gate(x))
            h = self.dropout(h)
            x = x + self.down(h)
        return x


@case()
class DrawsInBetween(Dropped):
    def forward(self, x):
        h = self.act(self.gate(x))
        noise = torch.rand(3).sum()
        h = self.dropout(h)
        return self.down(h) * noise


@case()
class TriesToDrop(Dropped):
    def forward(self, x):
        h = self.act(self.gate(x))
        try:
            h = F.dropout(h, 1.5)
        except ValueError:
            h = h * 2
        return self.down(h)


class Own(nn.Dropout):
    def forward(self, input):
        return super().forward(input) * 2


@case()
class ADropoutOfOnesOwn(Dropped):
    def __init__(self):
        super().__init__()
        self.dropout = Own(0.3)

    def forward(self, x):
        return self.down(self.dropout(self.act(self.gate(x))))


@case()
class ResidualDropout(Dropped):
    def forward(self, x):
        return x + self.dropout(self.down(self.act(self.gate(x))))


@case()
class InPlaceInTheParent(Dropped):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 32), nn.GELU())

    def forward(self, x):
        return self.down(F.dropout(self.inner(x), 0.3, self.training, True))


def sequence(*middle):
    return lambda: nn.Sequential(nn.Linear(16, 32), *copy.deepcopy(middle), nn.Linear(32, 16))


class MyGELU(nn.Module):
    def forward(self, x):
        return x * 0.5 * (1.0 + torch.erf(x / 2.0**0.5))


add("dropout: in a Sequential", sequence(nn.GELU(), nn.Dropout(0.3)), saves=2, tools=True)
add("dropout: in a Sequential in place", sequence(nn.SiLU(), nn.Dropout(0.3, inplace=True)), saves=2)
add("dropout: of ReLU in a Sequential", sequence(nn.ReLU(), nn.Dropout(0.3)), saves=1)
add("dropout: of an own GELU in a Sequential", sequence(MyGELU(), nn.Dropout(0.3)), saves=2)
add("dropout: two in a Sequential", sequence(nn.GELU(), nn.Dropout(0.3), nn.Dropout(0.2)))
add("dropout: in a Sequential, changed by what follows", sequence(nn.GELU(), nn.Dropout(0.3), nn.ReLU(inplace=True)))
add(
    "dropout: in a Sequential, hooked later",
    sequence(nn.GELU(), nn.Dropout(0.3)),
    change=lambda model, patch: model[1].register_forward_hook(lambda module, args, output: output * 2),
)
add(
    "dropout: in a Sequential, the activation replaced",
    sequence(nn.GELU(), nn.Dropout(0.3)),
    change=lambda model, patch: model.__setitem__(1, nn.Tanh()),
)
