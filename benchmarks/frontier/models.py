"""The models of the frontier, in plain PyTorch: stacks of decoder layers, of encoder layers and of convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

SEED = 0


class GatedMLP(nn.Module):
    """SwiGLU, as Llama has it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down, self.act = nn.Linear(hidden, width, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return out


class Decoder(nn.Module):
    """A layer of a Llama, without its rotations of queries and keys, which hold nothing."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = GatedMLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attention(self.qkv(self.first(x)), self.heads, is_causal=True))
        out: Tensor = x + self.mlp(self.second(x))
        return out


class Encoder(nn.Module):
    """A layer of a BERT, with its dropouts but for the one inside attention."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.intermediate, self.act, self.output = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop, self.drop_again = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + self.drop(self.out(attention(self.qkv(x), self.heads))))
        out: Tensor = self.second(x + self.drop_again(self.output(self.act(self.intermediate(x)))))
        return out


class Convolutions(nn.Module):
    """Conv-BN-SiLU twice, around which x is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = self.act(norm(conv(y)))
        return x + y


def attention(qkv: Tensor, heads: int, **how: Any) -> Tensor:
    """Of queries, keys and values side by side, (batch, length, 3 * width)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return functional.scaled_dot_product_attention(q, k, v, **how).transpose(1, 2).flatten(2)


class Stack(nn.Module):
    """Layers one after another, and the loss of what comes out; every ``every``-th is checkpointed, or none for 0."""

    def __init__(self, layers: nn.ModuleList, every: int = 0, policy: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.layers, self.every = layers, every
        self.how: dict[str, Any] = {"use_reentrant": False}
        if policy is not None:
            self.how["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = checkpoint(layer, x, **self.how) if self.every and number % self.every == 0 else layer(x)
        return (x - wanted).square().mean()  # mse_loss leaves a whole tensor's memory in the hands of its result


@dataclass(frozen=True)
class Size:
    """So many layers, what each is made with, and the shape of their input."""

    layers: int
    arguments: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A stack in the sizes that it is measured in, and the stages in which OptiActs converts it."""

    name: str
    layer: Callable[..., nn.Module]
    stages: tuple[str, ...]  # of optiacts.reporting.conversion.CONVERSIONS
    cpu: Size
    cuda: Size
    dry: Size
    random: bool = False  # has dropouts

    def size(self, device: str, dry: bool) -> Size:
        return self.dry if dry else self.cuda if device == "cuda" else self.cpu

    def layers(self, size: Size) -> nn.ModuleList:
        """The same weights each time."""
        torch.manual_seed(SEED)
        return nn.ModuleList(self.layer(*size.arguments) for _ in range(size.layers))

    def words(self, size: Size) -> str:
        """The size, as a table says it."""
        made = " / ".join(map(str, size.arguments))
        return f"{size.layers} layers of {made}, {' x '.join(map(str, size.shape))}"


# CPU: a step of a quarter to half a second on one thread. CUDA, in bfloat16: layers as those of 1-billion models, and
# batches for which an H200 takes some 50 ms: with a quarter of them its steps wait for the host.
MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            "Llama",
            Decoder,
            ("activations converted", "gated MLPs converted", "norms converted"),
            cpu=Size(6, (512, 1408, 8), (2, 256, 512)),
            cuda=Size(6, (2048, 5632, 32), (8, 2048, 2048)),
            dry=Size(2, (32, 64, 2), (2, 16, 32)),
        ),
        Model(
            "BERT",
            Encoder,
            ("activations converted", "dropouts converted", "norms converted"),
            cpu=Size(6, (512, 2048, 8), (2, 256, 512)),
            cuda=Size(6, (1024, 4096, 16), (64, 512, 1024)),
            dry=Size(2, (32, 64, 2), (2, 16, 32)),
            random=True,
        ),
        Model(
            "conv net",
            Convolutions,
            ("activations converted", "norms and activations in one"),
            cpu=Size(6, (64,), (8, 64, 32, 32)),
            cuda=Size(6, (128,), (128, 128, 64, 64)),
            dry=Size(2, (16,), (2, 16, 8, 8)),
        ),
    )
}
