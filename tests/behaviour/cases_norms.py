"""Norms: those of PyTorch and of others, what their outputs go to, and what only looks like one."""

from functools import partial

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch import nn
from torch.nn import functional as F
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tests.behaviour.case import add, case, sample
from tests.behaviour.effects import note

ROWS, WIDTH = 64, 32
HERE = {"inputs": lambda: (sample(ROWS, 16),), "hidden": 4 * ROWS * WIDTH}


class Normed(nn.Module):
    """A norm between two linears, whose output the second one keeps."""

    def __init__(self, norm=None):
        super().__init__()
        self.up, self.down = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 16)
        self.norm = nn.LayerNorm(WIDTH) if norm is None else norm()
        with torch.no_grad():
            for parameter in self.norm.parameters():
                parameter.add_(torch.linspace(-0.3, 0.4, parameter.numel()).view(parameter.shape))

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


# --- whose norm it is ---


class WrittenOut(nn.Module):
    def __init__(self, size=WIDTH):
        super().__init__()
        self.scale, self.shift, self.eps = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size)), 1e-5

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        centred = x - mean
        return self.scale * centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + self.eps) + self.shift


class Inherits(nn.LayerNorm):
    """Only its class is another one."""


class AsksItsParent(nn.LayerNorm):
    def forward(self, input):
        return super().forward(input)


for name, norm, saves in [
    ("nn.LayerNorm", nn.LayerNorm, 1),
    ("nn.LayerNorm without bias", partial(nn.LayerNorm, bias=False), 1),
    ("nn.LayerNorm without parameters", partial(nn.LayerNorm, elementwise_affine=False), 1),
    ("nn.LayerNorm, large eps", partial(nn.LayerNorm, eps=0.5), 1),
    ("nn.RMSNorm", nn.RMSNorm, 1),
    ("nn.RMSNorm with eps", partial(nn.RMSNorm, eps=1e-6), 1),
    ("nn.RMSNorm without parameters", partial(nn.RMSNorm, elementwise_affine=False), 1),
    ("Llama's", LlamaRMSNorm, 2),
    ("T5's", T5LayerNorm, 2),
    ("Gemma's", Gemma3RMSNorm, 2),
    ("Cohere's", CohereLayerNorm, 2),
    ("ConvNext's", ConvNextLayerNorm, 1),
    ("diffusers' RMSNorm", partial(DiffusersRMSNorm, eps=1e-6), 2),
    ("diffusers' with bias", partial(DiffusersRMSNorm, eps=1e-6, bias=True), 2),
    ("diffusers' LayerNorm", FP32LayerNorm, 1),
    ("written out", lambda size: WrittenOut(size), 2),
    ("of a subclass", Inherits, 1),
    ("that asks its parent", AsksItsParent, 1),
]:
    tools = name in ("nn.LayerNorm", "Llama's")
    add(f"norms: {name}", partial(Normed, partial(norm, WIDTH)), saves=saves, tools=tools, **HERE)


@case(saves=1, inputs=lambda: (sample(2, 8, 4, 4),), hidden=4 * 2 * 16 * 16)
class ChannelsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.norm = ConvNextLayerNorm(16, data_format="channels_first")

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


@case(saves=1, inputs=lambda: (sample(64, 6, 16),), hidden=4 * 64 * 6 * 16)
class TwoDimensions(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(16, 16), nn.LayerNorm((6, 16)), nn.Linear(16, 16)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


# --- how it is called ---


@case(saves=1, **HERE)
class Keyword(Normed):
    def forward(self, x):
        return self.down(self.norm(input=self.up(x)))


@case(saves=2, **HERE)
class Twice(Normed):
    """The same norm, two outputs."""

    def forward(self, x):
        return self.down(self.norm(self.down(self.norm(self.up(x))) @ self.up.weight.t()))


@case(saves=2, **HERE)
class Tied(Normed):
    """Two norms of the same parameters."""

    def __init__(self):
        super().__init__()
        self.other = nn.LayerNorm(WIDTH)
        self.other.weight, self.other.bias = self.norm.weight, self.norm.bias

    def forward(self, x):
        return self.down(self.other(self.up(self.down(self.norm(self.up(x))))))


@case(**HERE)
class Chosen(Normed):
    def forward(self, x):
        h = self.up(x)
        return self.down(self.norm(h) if self.training else h)


@case(**HERE)
class ItsParts(Normed):
    """Nobody calls the norm itself."""

    def forward(self, x):
        return self.down(F.layer_norm(self.up(x), (WIDTH,), self.norm.weight, self.norm.bias))


# --- what its output goes to ---


@case(**HERE)
class Added(Normed):
    def forward(self, x):
        h = self.up(x)
        return self.down((h + self.norm(h)).tanh())


@case(LlamaRMSNorm, saves=1, **HERE)
class AddedOnly(nn.Module):
    """Nobody keeps the output, and the norm keeps one tensor instead of several."""

    def __init__(self, norm):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(16, WIDTH), norm(WIDTH), nn.Linear(16, WIDTH)

    def forward(self, x):
        return self.norm(self.up(x)) + self.down(x)


@case(saves=1, **HERE)
class PostNorm(nn.Module):
    """One follower keeps the output, the other does not."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.next = nn.Linear(16, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = self.norm(self.up(x))
        return y + self.next(y)


class _InPlace(Normed):
    def changed(self, y):
        y += 1
        return y

    def forward(self, x):
        return self.down(self.changed(self.norm(self.up(x))))


add("norms: changed in place", _InPlace, left="changed in place", **HERE)


@case(left="changed in place", **HERE)
class InPlaceView(Normed):
    def forward(self, x):
        y = self.norm(self.up(x))
        y.view(-1).mul_(2)
        return self.down(y)


@case(left="changed in place", **HERE)
class InPlaceInTheParent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.down = nn.Sequential(nn.Linear(16, WIDTH), nn.LayerNorm(WIDTH)), nn.Linear(WIDTH, 16)

    def forward(self, x):
        y = self.inner(x)
        y += 1
        return self.down(y)


@case(left="changed in place", **HERE)
class InPlaceActivation(Normed):
    def forward(self, x):
        return self.down(F.relu_(self.norm(self.up(x))))


@case(may_raise=True, **HERE)
class InPlaceUnseen(Normed):
    def forward(self, x):
        y = self.norm(self.up(x))
        getattr(y, "ad" + "d_")(1)
        return self.down(y)


# --- what changes later ---

for name, change in {
    "eps": lambda model, patch: setattr(model.norm, "eps", 0.5),
    "weight gone": lambda model, patch: setattr(model.norm, "weight", None),
    "another weight": lambda model, patch: setattr(model.norm, "weight", nn.Parameter(torch.full((WIDTH,), 0.7))),
    "zeros": lambda model, patch: nn.init.zeros_(model.norm.weight),
    "frozen": lambda model, patch: model.norm.requires_grad_(False),
    "frozen after it": lambda model, patch: model.down.requires_grad_(False),
    "forward": lambda model, patch: patch.setattr(nn.LayerNorm, "forward", lambda self, x: x * 2),
    "F.layer_norm": lambda model, patch: patch.setattr(F, "layer_norm", lambda x, *args: x * 2),
}.items():
    add(f"norms: {name} later", Normed, saves=1, change=change, **HERE)


class _Shifted(nn.Module):
    def forward(self, weight):
        return weight + 0.25


def _parametrized(model, patch):
    nn.utils.parametrize.register_parametrization(model.norm, "weight", _Shifted())


add("norms: parametrized later", Normed, saves=1, change=_parametrized, **HERE)


# --- what only looks like a norm ---


class _Like(nn.Module):
    def __init__(self, size=WIDTH):
        super().__init__()
        self.weight, self.eps, self.count = nn.Parameter(torch.ones(size)), 1e-6, 0

    def rstd(self, x):
        return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def lookalike(kind):
    add(f"norms: {kind.__name__}", partial(Normed, kind), left="no norm|more than one", **HERE)
    return kind


@lookalike
class DetachedNorm(_Like):
    def forward(self, x):
        return self.weight * x * self.rstd(x).detach()


@lookalike
class NoGradNorm(_Like):
    def forward(self, x):
        with torch.no_grad():
            rstd = self.rstd(x)
        return self.weight * x * rstd


@lookalike
class DataNorm(_Like):
    def forward(self, x):
        return self.weight * x * self.rstd(x.data)


@lookalike
class OutsideNorm(_Like):
    """eps stands outside the root."""

    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)


@lookalike
class ClampedNorm(_Like):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True).clamp(min=self.eps))


@lookalike
class UnbiasedNorm(_Like):
    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + self.eps)


@lookalike
class OtherDimensionNorm(_Like):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + self.eps)


@lookalike
class SquaredNorm(_Like):
    def forward(self, x):
        return self.weight**2 * x * self.rstd(x)


@lookalike
class SumNorm(_Like):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + self.eps)


@lookalike
class CountingNorm(_Like):
    def forward(self, x):
        self.count += 1
        return self.weight * x * self.rstd(x)


@lookalike
class NotingNorm(_Like):
    def forward(self, x):
        note("norm")
        return self.weight * x * self.rstd(x)


@lookalike
class TrainingNorm(_Like):
    def forward(self, x):
        return self.weight * x * self.rstd(x) if self.training else x


@lookalike
class RandomNorm(_Like):
    def forward(self, x):
        return self.weight * x * self.rstd(x) + torch.rand(())


@lookalike
class DroppedNorm(_Like):
    def forward(self, x):
        return F.dropout(self.weight * x * self.rstd(x), 0.0, True)


@lookalike
class OverwritingNorm(_Like):
    def forward(self, x):
        x.mul_(2)
        return self.weight * x * self.rstd(x)


@lookalike
class SizeNorm(_Like):
    """Of more rows than any probe has it computes something else."""

    def forward(self, x):
        return self.weight * x * self.rstd(x) if x.shape[0] < 60 else x * 2


@lookalike
class DtypeNorm(_Like):
    def forward(self, x):
        return self.weight * x if x.dtype in (torch.float64, torch.float32) else x


@lookalike
class GatedNorm(_Like):
    def forward(self, x, gate=None):
        return self.weight * x * self.rstd(x) if gate is None else gate


@lookalike
class SettingNorm(_Like):
    """What it depends on, it sets itself."""

    def forward(self, x):
        self.eps = float(x.detach().abs().mean())
        return self.weight * x * self.rstd(x)


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(16, WIDTH), _PairNorm(), nn.Linear(WIDTH, 16)

    def forward(self, x):
        return self.down(self.norm(self.up(x))[0])


class _PairNorm(_Like):
    def forward(self, x):
        return self.weight * x * self.rstd(x), x


add("norms: returns a pair", _Pair, left="no norm", **HERE)


@case(left="more than one input", **HERE)
class Gated(Normed):
    def __init__(self):
        super().__init__(lambda: Qwen3NextRMSNormGated(WIDTH, activation="gelu_python"))

    def forward(self, x):
        h = self.up(x)
        return self.down(self.norm(h, h.detach()))


for name, norm in {"groups": partial(nn.GroupNorm, 4), "over the batch": nn.BatchNorm1d}.items():
    add(f"norms: {name}", partial(Normed, partial(norm, WIDTH)), left="it normalises", **HERE)


@case(saves=2, **HERE)
class DtypeBranch(Normed):
    """Another computation in 16 bits, which is not the norm; in float32 it is."""

    def __init__(self):
        super().__init__(_Halved)


class _Halved(_Like):
    def forward(self, x):
        y = self.weight * (x * self.rstd(x))
        return y if x.dtype is torch.float32 or x.dtype is torch.float64 else y * 0.5
