"""Norms and the activations after them: written and changed in every way, in nets that convolve."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.case import add, case, sample
from tests.behaviour.effects import note

C, SIZE = 16, 8
# of so many elements some lie where an output tells its input coarsely
HERE = {"inputs": lambda: (sample(4, 4, SIZE, SIZE),), "hidden": 4 * 4 * C * SIZE * SIZE, "slack": 1e-5}
BOTH = {**HERE, "saves": 2}  # x and z, of x, z and y
ONE = {**HERE, "saves": 1}  # without chains


class Block(nn.Module):
    """Conv, norm, activation, conv; the second one keeps the activation's output."""

    def __init__(self, norm=None, act=None):
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, C, 3, padding=1, bias=False), nn.Conv2d(C, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(C) if norm is None else norm()
        self.act = nn.SiLU() if act is None else act
        with torch.no_grad():
            for parameter in self.norm.parameters():
                parameter.add_(torch.linspace(-0.2, 0.3, parameter.numel()).view(parameter.shape))

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))))


add("chains: nested", Block, tools=True, **BOTH)
add("chains: GroupNorm", lambda: Block(lambda: nn.GroupNorm(4, C)), tools=True, **BOTH)
add("chains: InstanceNorm", lambda: Block(lambda: nn.InstanceNorm2d(C, affine=True)), **BOTH)
add("chains: in place", lambda: Block(act=nn.SiLU(inplace=True)), **BOTH)
add("chains: mish by function", lambda: Block(act=F.mish), **BOTH)
add("chains: cumulative average", lambda: Block(lambda: nn.BatchNorm2d(C, momentum=None)), **BOTH)
add("chains: no running statistics", lambda: Block(lambda: nn.BatchNorm2d(C, track_running_stats=False)), **BOTH)
add("chains: GELU", lambda: Block(act=nn.GELU()), **ONE)
add("chains: another norm", lambda: Block(lambda: nn.LocalResponseNorm(2)), **HERE)
add("chains: no norm", lambda: Block(nn.Identity), **ONE)


@case(**BOTH)
class OverAVariable(Block):
    def forward(self, x):
        h = self.conv(x)
        h = self.norm(h)
        h = self.act(h)
        return self.head(h)


@case(tools=True, **BOTH)
class InABranch(Block):
    """As diffusers' ResnetBlock2D."""

    how = "default"

    def forward(self, x):
        h = self.conv(x)
        if self.how == "default":
            h = self.norm(h)
        elif self.how == "shift":
            h = self.norm(h)
            h = h + 1
        else:
            h = self.norm(h)
        h = F.silu(h)
        return self.head(h)


@case(**HERE)
class ShiftedInABranch(InABranch):
    how = "shift"


@case(tools=True, **BOTH)
class Sequence(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(4, C, 3, padding=1, bias=False),
            nn.BatchNorm2d(C),
            nn.SiLU(inplace=True),
            nn.Conv2d(C, 4, 3, padding=1),
        )


@case(**BOTH)
class SequenceInside(Block):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.GroupNorm(4, C), nn.Mish(), nn.Identity())

    def forward(self, x):
        return self.head(self.body(self.conv(x)))


@case(**{**HERE, "saves": 1})
class NobodyElseKeeps(Block):
    """Two tensors become one: the next layer, an addition, keeps nothing."""

    def forward(self, x):
        h = self.conv(x)
        return (self.act(self.norm(h)) + 1).mean((2, 3))


@case(**ONE)
class UsesTheNormToo(Block):
    def forward(self, x):
        z = self.norm(self.conv(x))
        return self.head(self.act(z)) + z.mean()


@case(**HERE)
class ActivatesTwice(Block):
    def forward(self, x):
        z = self.norm(self.conv(x))
        y = self.act(z)
        return self.head(y * self.act(z))


@case(**HERE)
class CallsInBetween(Block):
    """What runs between the two may look at anything."""

    def forward(self, x):
        h = self.norm(self.conv(x))
        note("between", int(self.norm.num_batches_tracked))
        h = self.act(h)
        return self.head(h)


@case(**HERE)
class ChangesTheInputInBetween(Block):
    def forward(self, x):
        h = self.conv(x) * 1
        z = self.norm(h)
        h += 1
        z = self.act(z)
        return self.head(z + h)


@case(**HERE)
class ALoop(Block):
    def forward(self, x):
        h = self.conv(x)
        for _ in range(2):
            h = self.act(h)
            h = self.norm(h)
        return self.head(h)


@case(**HERE)
class AContext(Block):
    """The norm runs without autocast, the activation with it."""

    def forward(self, x):
        h = self.conv(x)
        with torch.autocast("cpu", enabled=False):
            h = self.norm(h.float())
        h = self.act(h)
        return self.head(h)


@case(**HERE)
class ReadsLater(Block):
    def forward(self, x):
        h = self.norm(self.conv(x))
        later = lambda: h.mean()  # noqa: E731
        y = self.act(h)
        return self.head(y) + later()


@case(**HERE)
class ReturnsWithoutActivation(Block):
    """As transformers' MobileNetV2: on another path the norm's output is returned."""

    def __init__(self, act=None):
        super().__init__(act=act)
        self.maybe = self.act

    def forward(self, x):
        h = self.norm(self.conv(x))
        if self.maybe is not None:
            h = self.maybe(h)
        return self.head(h)


@case(may_raise=True, **HERE)
class ChangesTheOutput(Block):
    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        y *= 2
        return self.head(y)


@case(**HERE)
class DroppedInPlace(Block):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.2, inplace=True)

    def forward(self, x):
        return self.head(self.dropout(self.act(self.norm(self.conv(x)))))


@case(**ONE)
class Dropped(Block):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        h = self.act(self.norm(self.conv(x)))
        h = self.dropout(h)
        return self.head(h)


@case(**HERE)
class Gate(Block):
    """A product with the activation of a norm."""

    def forward(self, x):
        h = self.conv(x)
        return self.head(self.act(self.norm(h)) * h)


def _norm_frozen(model, patch):
    model.norm.eval()
    model.norm.requires_grad_(False)


def _norm_replaced(model, patch):
    model.norm = nn.Identity()


def _weights_die(model, patch):
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.fill_(0.5)


def _norm_shared(model, patch):
    model.norm.register_forward_hook(lambda module, args, output: output * 2)


for change in (_norm_frozen, _norm_replaced, _weights_die, _norm_shared):
    add(f"chains: later{change.__name__.replace('_', ' ')}", Block, change=change, **BOTH)
