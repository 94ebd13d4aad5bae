"""Forwards that a trace gets silently wrong: contexts, branches, randomness, effects, what changes later."""

import contextlib
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.case import case, sample
from tests.behaviour.effects import note
from tests.behaviour.parts import Mlp

# --- contexts ---


@case(saves=1, tools=True)
class AutocastOff(Mlp):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.down(F.gelu(self.gate(x.float())))


@case(saves=2)
class AutocastOffForTheGate(Mlp):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            h = self.gate(x.float())
        return self.down(F.silu(h) * self.up(x))


@case(saves=1)
class AutocastOffDecorator(Mlp):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return self.down(F.gelu(self.gate(x.float())))


@case(saves=1)
class TwoAutocastsOff(Mlp):
    def forward(self, x):
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return self.down(F.gelu(self.gate(x.float())))


@case(saves=1)
class AutocastAsItIs(Mlp):
    def forward(self, x):
        with torch.amp.autocast("cpu", cache_enabled=False, enabled=torch.is_autocast_enabled("cpu")):
            return self.down(F.gelu(self.gate(x)))


@case(coarse=True)
class AutocastOnInside(Mlp):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = F.silu(self.gate(x)) * self.up(x)
        return self.down(h.float())


@case(saves=1)
class IsAutocastEnabled(Mlp):
    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            x = x * 2
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class GradIfTraining(Mlp):
    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            h = self.gate(x)
        return self.down(F.gelu(h))


@case(saves=1)
class NoGradBeside(Mlp):
    def forward(self, x):
        with torch.no_grad():
            mean = x.mean()
        return self.down(F.gelu(self.gate(x))) + mean


@case()
class NoGradAround(Mlp):
    def forward(self, x):
        with torch.no_grad():
            h = F.silu(self.gate(x)) * self.up(x)
        return self.down(h)


@case(saves=1)
class InferenceModeFalse(Mlp):
    def forward(self, x):
        with torch.inference_mode(False):
            h = self.gate(x)
        return self.down(F.gelu(h))


@case()
class InferenceModeInside(Mlp):
    def forward(self, x):
        with torch.inference_mode():
            y = F.gelu(self.gate(x))
        return self.down(F.gelu(self.gate(x))) + y.sum().item()


@case(saves=1)
class RecordFunction(Mlp):
    def forward(self, x):
        with torch.profiler.record_function("mlp"):
            h = F.gelu(self.gate(x))
        return self.down(h)


@case(saves=1)
class SdpaKernel(Mlp):
    def forward(self, x):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            h = F.gelu(self.gate(x))
            q = h.view(-1, 1, 1, 32)
            y = F.scaled_dot_product_attention(q, q, q).view(-1, 32)
        return self.down(h + y)


@case(saves=1)
class DeviceContext(Mlp):
    def forward(self, x):
        with torch.device("cpu"):
            return self.down(F.gelu(self.gate(x) + torch.ones(32)))


@case(saves=1)
class BackendFlags(Mlp):
    def forward(self, x):
        with torch.backends.mkldnn.flags(enabled=False):
            return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class ExitStack(Mlp):
    def forward(self, x):
        with contextlib.ExitStack() as stack:
            stack.callback(note, "left the forward")
            return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class CheckpointedInside(Mlp):
    """The product is computed in a checkpoint: nothing of it is held, but the rest is."""

    def _product(self, x):
        return F.silu(self.gate(x)) * self.up(x)

    def forward(self, x):
        h = torch.utils.checkpoint.checkpoint(self._product, x, use_reentrant=False)
        return self.down(h) + self.down(F.gelu(self.up(x)))


# --- in place before the activation ---


@case(saves=1)
class ViewPlusOne(Mlp):
    def forward(self, x):
        h = self.gate(x)
        first = h[:, :8]
        first += 1.0
        return self.down(F.gelu(h))


@case()
class AliasTimesHalf(Mlp):
    def forward(self, x):
        h = self.gate(x)
        residual = h
        h *= 0.5
        return self.down(F.gelu(h) + residual)


@case(saves=2, tools=True)
class TimesParameterInPlace(Mlp):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(32))

    def forward(self, x):
        h = self.gate(x)
        h = h * 1
        h *= self.scale  # under autocast h stays bfloat16; out of place it would not
        return self.down(F.silu(h) * self.up(x))


@case(saves=1)
class InputInPlace(Mlp):
    def forward(self, x):
        x += 1.0
        return self.down(F.gelu(self.gate(x)))


@case(leaf=True)
class LeafInPlace(Mlp):
    def forward(self, x):
        x += 1.0
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class MaskedInPlace(Mlp):
    def forward(self, x):
        h = self.gate(x)
        h[h < 0] = 0
        return self.down(F.gelu(h))


# --- branches ---


@case(saves=1, tools=True)
class ShapeBranch(Mlp):
    def forward(self, x):
        if x.dim() == 2:
            x = x.unsqueeze(0)
        return self.down(F.gelu(self.gate(x))).squeeze(0)


@case(saves=1)
class EarlyReturn(Mlp):
    def forward(self, x):
        if not self.training:
            return self.down(self.gate(x))
        if x.sum() > 1e6:
            return x
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class Asserts(Mlp):
    def forward(self, x):
        assert x.shape[-1] == 16, "sixteen"
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class RaisesOnShape(Mlp):
    def forward(self, x):
        if x.shape[-1] != 16:
            raise ValueError(f"bad shape {tuple(x.shape)}")
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class IsCompiling(Mlp):
    def forward(self, x):
        h = self.gate(x)
        if torch.compiler.is_compiling():
            h = h * 2
        return self.down(F.gelu(h))


@case(saves=2)
class TypeOfATensor(Mlp):
    def forward(self, x):
        h = F.silu(self.gate(x)) * self.up(x)
        return self.down(h) if type(x) is torch.Tensor else h


@case(saves=4)
class Loop(Mlp):
    def forward(self, x):
        for _ in range(2):
            x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return x


@case(saves=1)
class WhileWithBreak(Mlp):
    def forward(self, x):
        count = 0
        while True:
            count += 1
            if count > 1:
                break
            x = self.down(F.gelu(self.gate(x)))
        else:
            x = x * 2
        return x


@case(saves=2)
class OverRows(Mlp):
    def forward(self, x):
        rows = [self.down(F.silu(self.gate(row)) * self.up(row)) for row in x]
        return torch.stack(rows)


@case(saves=1)
class Generator(Mlp):
    def _pieces(self, x):
        for piece in x.chunk(2):
            yield F.gelu(self.gate(piece))

    def forward(self, x):
        return torch.cat([self.down(piece) for piece in self._pieces(x)])


@case(saves=1)
class YieldsBoth(Mlp):
    def _sent(self):
        got = yield
        while got is not None:
            got = yield self.down(F.gelu(self.gate(got)))

    def forward(self, x):
        sent = self._sent()
        next(sent)
        return sent.send(x)


@case(saves=1)
class Lambda(Mlp):
    def forward(self, x):
        inner = lambda v: F.gelu(self.gate(v))  # noqa: E731
        return self.down(inner(x))


@case(saves=2)
class NestedFunction(Mlp):
    def forward(self, x):
        factor = 1.0

        def product(v):
            nonlocal factor
            factor += 1.0
            return F.silu(self.gate(v)) * self.up(v)

        return self.down(product(x)) * factor


@case(saves=1)
class Walrus(Mlp):
    def forward(self, x):
        if (h := F.gelu(self.gate(x))).shape[0] < 100:
            return self.down(h)
        return h


@case(saves=1)
class Match(Mlp):
    mode = "gelu"

    def forward(self, x):
        match self.mode:
            case "gelu":
                h = F.gelu(self.gate(x))
            case _:
                h = torch.tanh(self.gate(x))
        return self.down(h)


@case(saves=2)
class Conditional(Mlp):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x) if self.training else self.gate(x))


@case(inputs=lambda: (sample(), sample(16), 2.0))
class ManyArguments(Mlp):
    def forward(self, x, *rest, scale=1.0, bias=None, **more):
        h = F.gelu(self.gate(x)) * scale
        for extra in rest:
            x = x + extra
        return self.down(h if bias is None else h + bias) + x


@case()
class PositionalOnly(Mlp):
    def forward(self, x, /, *, scale: float = 1.0):
        return self.down(F.gelu(self.gate(x)) * scale)


@case(saves=1)
class TypedDefaults(Mlp):
    def forward(self, x: torch.Tensor, seen: list[float] = []) -> torch.Tensor:  # noqa: B006
        seen.append(1.0)  # the default is shared by original and conversion
        return self.down(F.gelu(self.gate(x)))


# --- randomness ---


@case()
class LayerDropNumpy(Mlp):
    def forward(self, x):
        if self.training and np.random.rand() < 0.5:
            return x
        return x + self.down(F.gelu(self.gate(x)))


@case()
class LayerDropPython(Mlp):
    def forward(self, x):
        if self.training and random.random() < 0.5:
            return x
        return x + self.down(F.gelu(self.gate(x)))


@case()
class LayerDropTorch(Mlp):
    def forward(self, x):
        if self.training and torch.rand(()) < 0.5:
            return x
        return x + self.down(F.gelu(self.gate(x)))


@case(saves=1)
class ManualSeed(Mlp):
    def forward(self, x):
        torch.manual_seed(0)
        h = F.dropout(self.gate(x), 0.5)
        return self.down(F.gelu(h))


@case(saves=1)
class Noise(Mlp):
    def forward(self, x):
        h = self.gate(x)
        h = h + torch.randn_like(h) * 0.1 + torch.randn(h.shape) * 0.1
        return self.down(F.gelu(h))


@case()
class DropPath(Mlp):
    def forward(self, x):
        h = self.gate(x)
        keep = h.new_empty(h.shape[0], 1).bernoulli_(0.7)
        return self.down(F.gelu(h) * keep)


@case(saves=1)
class RandomInteger(Mlp):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x))) * (1 + random.randint(0, 3))


# --- effects ---


@case(saves=1)
class CountsCalls(Mlp):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class AppendsOutputs(Mlp):
    def __init__(self):
        super().__init__()
        self.outputs = []

    def forward(self, x):
        h = F.gelu(self.gate(x))
        self.outputs.append(h.detach())
        note("h", h.detach())
        return self.down(h)


@case()  # nobody keeps the output: a product with a number follows
class FusedOrNot(Mlp):
    """A fused op that refuses what it does not know: a proxy would take the other path."""

    def _fused(self, x):
        note("fused")
        if type(x) is not torch.Tensor:
            raise TypeError("the fused kernel wants a tensor")
        return F.gelu(x) * 1.5

    def forward(self, x):
        h = self.gate(x)
        try:
            h = self._fused(h)
        except Exception:
            h = F.gelu(h)
        return self.down(h)


@case(saves=1)
class TryFinally(Mlp):
    def forward(self, x):
        try:
            return self.down(F.gelu(self.gate(x)))
        except RuntimeError as error:
            note("caught", str(error))
            raise ValueError("wrapped") from error
        finally:
            note("finally")


@case(saves=1)
class RunningMean(Mlp):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("m", torch.zeros(32))

    def forward(self, x):
        h = self.gate(x)
        if self.training:
            n = self.n
            n += 1
            self.m.mul_(0.9).add_(h.detach().float().mean(0), alpha=0.1)
        return self.down(F.gelu(h - self.m.to(h.dtype)))


@case(saves=1)
class AssignsBuffer(Mlp):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        self.n = self.n + 1
        return self.down(F.gelu(self.gate(x)))


# --- what changes later ---


def _set(name, value):
    return lambda model, patch: setattr(model, name, value)


@case(change=_set("scale", 3.0))
class ClassAttribute(Mlp):
    scale = 1.0

    def forward(self, x):
        return self.down(F.gelu(self.gate(x)) * self.scale)


@case(change=lambda model, patch: patch.setattr(ClassAttributeOfTheClass, "scale", 3.0))
class ClassAttributeOfTheClass(Mlp):
    scale = 1.0

    def forward(self, x):
        return self.down(F.gelu(self.gate(x)) * self.scale)


@case(saves=1, change=lambda model, patch: patch.setattr(HelperPatched, "_activated", lambda self, h: h * 3))
class HelperPatched(Mlp):
    def _activated(self, h):
        return F.gelu(h)

    def forward(self, x):
        return self.down(self._activated(self.gate(x)))


@case(saves=1, change=lambda model, patch: patch.setattr(ForwardPatched, "forward", lambda self, x: self.up(x)))
class ForwardPatched(Mlp):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case(saves=1, change=lambda model, patch: patch.setattr(F, "gelu", torch.tanh))
class FunctionPatched(Mlp):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


SCALE = 1.0


@case(change=lambda model, patch: patch.setitem(globals(), "SCALE", 3.0))
class Global(Mlp):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)) * SCALE)


@case(change=_set("scale", torch.tensor(3.0)))
class InstanceAttribute(Mlp):
    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def forward(self, x):
        return self.down(F.gelu(self.gate(x)) * self.scale)


@case(change=_set("options", {"scale": 3.0}))
class Options(Mlp):
    def __init__(self):
        super().__init__()
        self.options = {"scale": 1.0}

    def forward(self, x):
        return self.down(F.gelu(self.gate(x)) * self.options["scale"])


@case(saves=1, change=lambda model, patch: setattr(model, "gamma", nn.Parameter(torch.full((32,), 3.0))))
class ParameterSetLater(Mlp):
    def __init__(self):
        super().__init__()
        self.register_parameter("gamma", None)

    def forward(self, x):
        h = self.gate(x)
        if self.gamma is not None:
            h = h * self.gamma
        return self.down(F.gelu(h))


@case(saves=1, change=_set("gamma", None))
class ParameterRemovedLater(Mlp):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((32,), 3.0))

    def forward(self, x):
        h = self.gate(x)
        if self.gamma is not None:
            h = h * self.gamma
        return self.down(F.gelu(h))


@case(saves=1, change=_set("gamma", torch.full((32,), 3.0)))
class BufferSetLater(Mlp):
    def __init__(self):
        super().__init__()
        self.register_buffer("gamma", None)

    def forward(self, x):
        h = self.gate(x)
        if self.gamma is not None:
            h = h * self.gamma
        return self.down(F.gelu(h))


@case(saves=1, change=_set("adapter", nn.Softplus()))
class ModuleSetLater(Mlp):
    def __init__(self):
        super().__init__()
        self.register_module("adapter", None)

    def forward(self, x):
        h = self.gate(x)
        if self.adapter is not None:
            h = self.adapter(h)
        return self.down(F.gelu(h))


@case(saves=1, change=_set("adapter", nn.Softplus()))
class AttributeBecomesModule(Mlp):
    def __init__(self):
        super().__init__()
        self.adapter = None

    def forward(self, x):
        h = self.gate(x)
        if self.adapter is not None:
            h = self.adapter(h)
        return self.down(F.gelu(h))


@case(saves=1, change=_set("extra", nn.Softplus()))
class HasattrLater(Mlp):
    def forward(self, x):
        h = self.gate(x)
        if hasattr(self, "extra"):
            h = self.extra(h)
        if getattr(self, "factor", None):
            h = h * self.factor
        return self.down(F.gelu(h))


@case(saves=1, change=lambda model, patch: model.layers.append(nn.Linear(16, 16)))
class LayersAppended(Mlp):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.down(F.gelu(self.gate(x)))


@case(saves=1, change=lambda model, patch: setattr(model.act, "approximate", "tanh"))
class ApproximateLater(Mlp):
    def forward(self, x):
        return self.down(self.act(self.gate(x)))


@case(nn.SiLU(), saves=2, change=_set("act", nn.Sigmoid()))
@case(nn.SiLU(), saves=2, change=_set("act", F.relu))
class ActivationLater(Mlp):
    def __init__(self, act):
        super().__init__(act=type(act)())

    def __setattr__(self, name, value):  # a function may take the place of a module
        if name == "act":
            self._modules.pop("act", None)
        super().__setattr__(name, value)

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


@case(saves=1, change=lambda model, patch: model.act.register_forward_hook(lambda m, a, y: y * 3))
class HookLater(Mlp):
    def forward(self, x):
        return self.down(self.act(self.gate(x)))


@case(nn.SiLU(), change=lambda model, patch: setattr(model.act, "inplace", True))
class InplaceLater(Mlp):
    def forward(self, x):
        h = self.gate(x)
        return self.down(self.act(h)) + self.down(h)
