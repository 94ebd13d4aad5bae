"""Where methods come from: mixins, abstract classes, watched classes, wrappers that know themselves."""

import abc
import functools
import typing

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.behaviour.case import case
from tests.behaviour.parts import Mlp


class TenTimes:
    """A plain mixin, no module: its forward comes before that of the module that it is mixed into."""

    def forward(self, x):
        return super().forward(x * 10)


class Plain(Mlp):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case(saves=1, tools=True)
class MixedIn(TenTimes, Plain):
    pass


class _Helper:
    def mlp(self, x):
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class HelperMixedIn(_Helper, Mlp):
    def forward(self, x):
        return self.mlp(x)


@case(saves=1)
class Abstract(abc.ABC, Mlp):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


T = typing.TypeVar("T")


@case(saves=1)
class OfAnyType(typing.Generic[T], Mlp):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


class _Watched(Mlp):
    """Keeps a registry of its subclasses, which must not hear of ours."""

    known: typing.ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        _Watched.known[cls.__name__] = cls


@case(saves=1)
class Watched(_Watched):
    def forward(self, x):
        assert type(self).__name__ in self.known
        return self.down(F.gelu(self.gate(x))) * (2 if self.known["Watched"] is Watched else 3)


class _Meta(type):
    pass


@case(left="metaclass")
class OfAMetaclass(Mlp, metaclass=_Meta):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


def _counted(function):
    @functools.wraps(function)
    def wrapper(self, x):
        wrapper.calls += 1
        return function(self, x)

    wrapper.calls = 0
    return wrapper


@case(saves=1)
class WrapperKnowsItself(Mlp):
    @_counted
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class DecoratedByTorch(Mlp):
    @torch.enable_grad()
    def forward(self, x):
        return self.down(self.act(self.gate(x)))


@case(saves=2)
class DecoratedGate(Mlp):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return self.down(self.act(self.gate(x.float())) * self.up(x.float()))


@case(saves=1)
class MutuallyRecursive(Mlp):
    def encode(self, x, n):
        return self.decode(F.gelu(self.gate(x)), n - 1) if n else x

    def decode(self, x, n):
        return self.encode(self.down(x), n - 1) if n > 0 else x

    def forward(self, x):
        return self.encode(x, 4)


class _Doubles(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 2 if func in (F.silu, torch._C._nn.silu) else result


@case()
class UnderAModeOfTheUsers(Mlp):
    def forward(self, x):
        with _Doubles():
            return self.down(F.silu(self.gate(x)))


@case(saves=1)
class DefaultArgument(Mlp):
    def forward(self, x, act=F.gelu):
        return self.down(act(self.gate(x)))


@case(left="in place")
class StackOfSkips(Mlp):
    """A U-Net's stack: what was put away is changed in place when it comes back."""

    def __init__(self):
        super().__init__()
        self.downs = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x):
        skips = []
        for block in self.downs:
            skips.append(block(x))
            x = x * 0.5
        for block in self.ups:
            h = skips.pop()
            h += block(x)
            x = h * 0.5
        return x


@case(left="in place")
class ChangedThroughAnAttribute(Mlp):
    def fix(self):
        self.h.mul_(2)

    def forward(self, x):
        h = F.gelu(self.gate(x))
        self.h = h
        y = self.down(self.h.clone())
        self.fix()
        return y
