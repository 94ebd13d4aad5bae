"""Activations written out by people: known by what they compute, run by their own code."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.case import add, case
from tests.behaviour.parts import Called, Mlp

C = math.sqrt(2.0 / math.pi)


class NewGELU(nn.Module):
    """nanoGPT's and minGPT's."""

    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class CubeByPower(nn.Module):
    def forward(self, input):
        return 0.5 * input * (1.0 + torch.tanh(C * (input + 0.044715 * input**3)))


class CubeByProducts(nn.Module):
    def forward(self, x):
        return x * 0.5 * (1.0 + torch.tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))


class ErfGELU(nn.Module):
    def forward(self, x):
        cdf = 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
        return x * cdf


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class SwishByMethod(nn.Module):
    def forward(self, x):
        return x.sigmoid().mul(x)


class SwishInPlaceOption(nn.Module):
    """timm's: the option is an attribute that may change."""

    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return _swish(x, self.inplace)


def _swish(x, inplace=False):
    return x.mul_(x.sigmoid()) if inplace else x.mul(x.sigmoid())


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor):
        return x * torch.sigmoid(1.702 * x)


class MishByHand(nn.Module):
    def forward(self, x):
        return x * torch.tanh(F.softplus(x))


class Wrapped(nn.Module):
    """An activation inside a module that is nothing else."""

    def __init__(self):
        super().__init__()
        self.inner = nn.GELU()

    def forward(self, x):
        return self.inner(x)


class ConstantsOfTheInstance(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.k = C, 0.044715

    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(self.c * (x + self.k * x**3)))


def gelu_erf(x):
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * torch.pow(x, 3))))


def quick(x, alpha=1.702):
    return x * torch.sigmoid(alpha * x)


@torch.jit.script
def scripted_gelu(x):
    return x * 0.5 * (1.0 + torch.erf(x / 1.41421))


class SwishFunction(torch.autograd.Function):
    """The efficient Swish of many vision models: its own backward, and that is right."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


class EfficientSwish(nn.Module):
    def forward(self, x):
        return SwishFunction.apply(x)


for kind in (NewGELU, CubeByPower, CubeByProducts, ErfGELU, Swish, SwishByMethod, SwishInPlaceOption, QuickGELU):
    add(f"recognised: module {kind.__name__}", lambda kind=kind: Called(kind()), saves=1, tools=kind is NewGELU)
for kind in (MishByHand, Wrapped, ConstantsOfTheInstance, EfficientSwish):
    add(f"recognised: module {kind.__name__}", lambda kind=kind: Called(kind()), saves=1)
for function in (gelu_erf, gelu_tanh, quick, _swish, partial(quick, alpha=1.702), partial(quick, alpha=1.0)):
    name = getattr(function, "__name__", "partial quick")
    add(f"recognised: function {name}", partial(Called, function), saves=1)
add("recognised: function scripted_gelu", partial(Called, scripted_gelu))
add("recognised: SwishFunction.apply", partial(Called, SwishFunction.apply))


def _bloom():
    from transformers.models.bloom.modeling_bloom import BloomGelu

    return Called(BloomGelu())


def _esm():
    from transformers.models.esm import modeling_esm

    return Called(modeling_esm.gelu)


add("recognised: Bloom's GELU", _bloom, saves=1)
add("recognised: ESM's gelu", _esm, saves=1)


# --- expressions in a forward ---


@case(saves=1, tools=True)
class ErfInline(Mlp):
    def forward(self, x):
        x = self.gate(x)
        return self.down(x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))))


@case(saves=1)
class TanhInline(Mlp):
    def forward(self, x):
        h = self.gate(x)
        h = 0.5 * h * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * torch.pow(h, 3.0))))
        return self.down(h)


@case(saves=1)
class TanhInlineCube(Mlp):
    def forward(self, x):
        h = self.gate(x)
        return self.down(0.5 * h * (1.0 + torch.tanh(C * (h + 0.044715 * h**3))))


@case(saves=1)
class SiluInline(Mlp):
    def forward(self, x):
        h = self.gate(x)
        return self.down(h * torch.sigmoid(h))


@case(saves=1)
class SiluInlineByMethod(Mlp):
    def forward(self, x):
        h = self.gate(x)
        return self.down(h.sigmoid() * h)


@case(saves=1)
class QuickInline(Mlp):
    def forward(self, x):
        h = self.gate(x)
        return self.down(h * torch.sigmoid(1.702 * h))


@case(saves=1)
class QuickInlineGated(Mlp):
    def forward(self, x):
        g = self.gate(x)
        return self.down(g * torch.sigmoid(1.702 * g) * self.up(x))


@case(saves=1)
class QuickInlineByAttribute(Mlp):
    """gpt-oss: alpha stands in an attribute."""

    alpha = 1.702

    def forward(self, x):
        g = self.gate(x)
        glu = g * torch.sigmoid(g * self.alpha)
        return self.down((self.up(x) + 1) * glu)


@case(saves=1)
class InHelper(Mlp):
    def new_gelu(self, x):
        return 0.5 * x * (1.0 + torch.tanh(C * (x + 0.044715 * x**3)))

    def forward(self, x):
        return self.down(self.new_gelu(self.gate(x)))


@case(saves=2)
class WrittenOutGate(Mlp):
    def forward(self, x):
        return self.down(gelu_tanh(self.gate(x)) * self.up(x))


@case(Swish(), saves=2)
@case(ErfGELU(), saves=2)
class ModuleGate(Mlp):
    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))
