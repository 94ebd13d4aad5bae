"""What looks like a known activation and is none, or will be none later."""

import time
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.case import add, case
from tests.behaviour.effects import note
from tests.behaviour.parts import Called, Mlp

# --- other numbers ---


@case()
class Sigmoid13(Mlp):
    def forward(self, x):
        h = self.gate(x)
        return self.down(h * torch.sigmoid(1.3 * h))


@case()
class SigmoidOfAnother(Mlp):
    def forward(self, x):
        return self.down(self.gate(x) * torch.sigmoid(self.up(x)))


@case()
class SigmoidOfTheNext(Mlp):
    """The name is the same, its value is not."""

    def forward(self, x):
        h = self.gate(x)
        return self.down(h * torch.sigmoid(h := self.up(x)) + h)


@case()
class SigmoidOfChanged(Mlp):
    def forward(self, x):
        h = self.gate(x)
        return self.down(h.add_(1) * torch.sigmoid(h))


@case()
class SigmoidOfTwoCalls(Mlp):
    """The same text twice, with another value each time."""

    def _next(self, x):
        self.turn = not getattr(self, "turn", False)
        return self.gate(x) if self.turn else self.up(x)

    def forward(self, x):
        return self.down(self._next(x) * torch.sigmoid(self._next(x)))


# --- parameters of the function that change later ---


def _later(**attributes):
    def change(model, patch):
        for name, value in attributes.items():
            setattr(model.act, name, value)

    return change


class Beta(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = 1.0

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class BetaOfTheClass(nn.Module):
    beta = 1.0

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class BetaInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Beta()

    def forward(self, x):
        return self.inner(x)


BETA = 1.0


class BetaGlobal(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(BETA * x)


class Settings:
    beta = 1.0
    table = {"beta": 1.0}


class BetaOfSettings(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(Settings.beta * x)


class BetaOfATable(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(Settings.table["beta"] * x)


def _sigmoid(x):
    return torch.sigmoid(x)


class ByHelper(nn.Module):
    def forward(self, x):
        return x * _sigmoid(x)


def swish(x, beta=1.0):
    return x * torch.sigmoid(beta * x)


def swish_by_keyword(x, *, beta=1.0):
    return x * torch.sigmoid(beta * x)


def _closing_over(beta):
    def swish(x):
        return x * torch.sigmoid(beta * x)

    return swish


CLOSED = _closing_over(1.0)
PARTIAL = partial(swish, beta=1.0)


def _tanh_approximation(x):
    return 0.5 * x * (1.0 + torch.tanh(_COEFFICIENTS[0] * (x + _COEFFICIENTS[1] * x**3)))


_COEFFICIENTS = [0.7978845608028654, 0.044715]

for name, act, change in [
    ("an attribute", Beta, _later(beta=1.3)),
    ("an attribute, a tensor", Beta, _later(beta=torch.tensor(1.3))),
    ("a class attribute, on the instance", BetaOfTheClass, _later(beta=1.3)),
    ("a class attribute", BetaOfTheClass, lambda m, patch: patch.setattr(BetaOfTheClass, "beta", 1.3)),
    ("an inner attribute", BetaInside, lambda m, patch: setattr(m.act.inner, "beta", 1.3)),
    ("a global", BetaGlobal, lambda m, patch: patch.setitem(globals(), "BETA", 1.3)),
    ("an attribute of a global", BetaOfSettings, lambda m, patch: patch.setattr(Settings, "beta", 1.3)),
    ("an item of a global", BetaOfATable, lambda m, patch: patch.setitem(Settings.table, "beta", 1.3)),
    ("a helper", ByHelper, lambda m, patch: patch.setitem(globals(), "_sigmoid", torch.tanh)),
    ("torch.sigmoid", ByHelper, lambda m, patch: patch.setattr(torch, "sigmoid", torch.tanh)),
    ("a default", lambda: swish, lambda m, patch: patch.setattr(swish, "__defaults__", (1.3,))),
    (
        "a keyword default",
        lambda: swish_by_keyword,
        lambda m, patch: patch.setattr(swish_by_keyword, "__kwdefaults__", {"beta": 1.3}),
    ),
    ("a closure", lambda: CLOSED, lambda m, patch: patch.setattr(CLOSED.__closure__[0], "cell_contents", 1.3)),
    ("a partial's keyword", lambda: PARTIAL, lambda m, patch: patch.setitem(PARTIAL.keywords, "beta", 1.3)),
    (
        "its code",
        lambda: swish,
        lambda m, patch: patch.setattr(swish, "__code__", (lambda x, beta=1.0: x * beta).__code__),
    ),
    (
        "an item of a global list",
        lambda: _tanh_approximation,
        lambda m, patch: patch.setitem(_COEFFICIENTS, 0, 1.0),
    ),
    ("its forward", Beta, lambda m, patch: patch.setattr(Beta, "forward", lambda self, x: x.tanh())),
]:
    add(f"unrecognised: later changes {name}", lambda act=act: Called(act()), change=change)


# --- other gradients ---


class StraightThrough(nn.Module):
    def forward(self, x):
        return x + (F.gelu(x) - x).detach()


class DetachedSigmoid(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x).detach()


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return F.silu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class ByData(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x.data)


class ClippedGradient(nn.Module):
    def forward(self, x):
        y = F.gelu(x)
        if y.requires_grad:
            y.register_hook(lambda g: g.clamp(-0.1, 0.1))
        return y


class NoGradSilu(nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return x * torch.sigmoid(x)


# --- other values somewhere ---


class HalfOfTheChannels(nn.Module):
    def forward(self, x):
        return torch.cat([F.gelu(x[..., :16]), x[..., 16:]], dim=-1)


class LaterRows(nn.Module):
    def forward(self, x):
        y = x.sigmoid() * x
        y = y.clone()
        y[2:] = 0
        return y


class PerChannel(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(32))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("beta", torch.ones(()))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class NotPointwise(nn.Module):
    """Agrees with SiLU for every single element, not for several."""

    def forward(self, x):
        return x * torch.softmax(torch.stack([x, x * 0]), 0)[0] * (x.sum() / x.sum().detach())


class MaximumOfRow(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) + 0.01 * (x.amax(-1, keepdim=True) - x.amax())


class Capped(nn.Module):
    """SiLU within the reach of any probe."""

    def forward(self, x):
        return torch.where(x.abs() < 1e4, x * torch.sigmoid(x), x * 0)


class BumpSomewhere(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) + torch.exp(-(((x - 0.777) / 1e-3) ** 2))


class TwoOutputs(nn.Module):
    def forward(self, x):
        return F.gelu(x), x


# --- what else it does ---


class Records(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(float(x.detach().mean()))
        return F.gelu(x)


class Notes(nn.Module):
    def forward(self, x):
        note("activation", x.shape)
        return x * torch.sigmoid(x)


class Counts(nn.Module):
    count = 0

    def forward(self, x):
        self.count += 1
        return 0.5 * x * (1.0 + torch.erf(x / 2**0.5))


class CountsInABuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count.add_(1)
        return x * torch.sigmoid(x)


class KeepsOutput(nn.Module):
    def forward(self, x):
        self.last = y = x * torch.sigmoid(x)
        self.last = None
        return y


class ReadsTraining(nn.Module):
    def forward(self, x):
        return F.gelu(x) if self.training else F.gelu(x, approximate="tanh")


class ReadsDtype(nn.Module):
    def forward(self, x):
        return F.gelu(x) if x.dtype == torch.float64 else F.gelu(x) * 2


class ReadsDevice(nn.Module):
    def forward(self, x):
        return F.gelu(x) * (2 if x.device.type == "cpu" and x.is_cpu else 1)


class ReadsShape(nn.Module):
    def forward(self, x):
        return F.gelu(x) * (2 if x.shape[-1] == 32 else 1)


class ReadsSizeByMethods(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) * (2 if x.size(0) == 4 or x.numel() == 128 or x.dim() == 2 or len(x) == 4 else 1)


class ReadsRequiresGrad(nn.Module):
    def forward(self, x):
        return F.silu(x) if x.requires_grad else F.silu(x) + 1


class ReadsGradMode(nn.Module):
    def forward(self, x):
        return F.silu(x) if torch.is_grad_enabled() else F.silu(x) + 1


class ReadsAutocast(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) * (2 if torch.is_autocast_enabled("cpu") else 1)


class ReadsDefaultDtype(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) * (2 if torch.get_default_dtype() == torch.float32 else 1)


class ReadsTime(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) + (0.0 if time.time() < 1e12 else 1.0)


class ReadsValues(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) if x.abs().max() < 1e3 else x


class Random(nn.Module):
    def forward(self, x):
        return F.gelu(x) + torch.rand(()) * 1e-9


class RandomBranch(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) if torch.rand(()) < 0.9 else x


class DropsOut(nn.Module):
    def forward(self, x):
        return F.dropout(x * torch.sigmoid(x), 0.1, self.training)


class ChangesInput(nn.Module):
    def forward(self, x):
        return x.mul_(torch.sigmoid(x))


class ChangesInputToo(nn.Module):
    def forward(self, x):
        y = x * torch.sigmoid(x)
        with torch.no_grad():
            x.add_(0.0)
        return y


class ReturnsView(nn.Module):
    def forward(self, x):
        return (x * torch.sigmoid(x)).view_as(x)[:]


class DeepCallStack(nn.Module):
    def forward(self, x):
        return _first(x)


def _first(x):
    return _second(x)


def _second(x):
    note("deep")
    return x * torch.sigmoid(x)


class OpenedGlobals(nn.Module):
    def forward(self, x):
        globals()["BETA"] = 1.0
        return x * torch.sigmoid(globals()["BETA"] * x)


class Prints(nn.Module):
    def forward(self, x):
        print(end="")
        return x * torch.sigmoid(x)


class ByEval(nn.Module):
    def forward(self, x):
        return eval("x * torch.sigmoid(x)", {"x": x, "torch": torch})


class ByGetattr(nn.Module):
    def forward(self, x):
        return x * getattr(torch, "sigm" + "oid")(x)


class CallableObject:
    """Not a function, not a module."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        note("called", self.calls)
        return F.gelu(x)


class Hooked(nn.GELU):
    """A subclass of a known activation may do anything."""

    def forward(self, input):
        note("subclass")
        return super().forward(input) * 2


class CallsOverridden(nn.GELU):
    def __call__(self, input):
        return super().__call__(input) + 1


class Inherits(nn.SiLU):
    def extra_repr(self):
        return "nothing else is new"


for kind in [v for v in list(globals().values()) if isinstance(v, type) and issubclass(v, nn.Module)]:
    if (
        kind.__module__ == __name__
        and not issubclass(kind, Mlp)
        and kind is not TwoOutputs
        and "Beta" not in kind.__name__
    ):
        add(f"unrecognised: {kind.__name__}", lambda kind=kind: Called(kind()))
add("unrecognised: Surrogate.apply", partial(Called, Surrogate.apply))
add("unrecognised: a callable object", lambda: Called(CallableObject()))


@case()
class UsesTwoOutputs(Mlp):
    def __init__(self):
        super().__init__(act=TwoOutputs())

    def forward(self, x):
        y, same = self.act(self.gate(x))
        return self.down(y + same)
