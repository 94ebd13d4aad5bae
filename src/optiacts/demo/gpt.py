"""A small GPT over bytes, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """SwiGLU, as Llama has it."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate, self.up, self.down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.silu(self.gate(x)) * self.up(x)
        return self.down(functional.dropout(inner, self.dropout, self.training))


class PlainMLP(nn.Sequential):
    """Linear, activation, dropout, Linear."""

    def __init__(self, width: int, activation: Callable[[], nn.Module], dropout: float) -> None:
        super().__init__(nn.Linear(width, 4 * width), activation(), nn.Dropout(dropout), nn.Linear(4 * width, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Bytes (batch, context) to logits (batch, context, 256).

    ``gated``: every second block has a gated MLP. ``dropout`` is that of the MLPs, behind activation or product.
    """

    def __init__(
        self,
        activation: Callable[[], nn.Module],
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        context: int = 128,
        gated: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(context, width)
        plain, swiglu = partial(PlainMLP, width, activation, dropout), partial(GatedMLP, width, 3 * width, dropout)
        mlps = (swiglu if gated and layer % 2 else plain for layer in range(layers))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp) for mlp in mlps))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(places))))

    def loss(self, window: Tensor) -> Tensor:
        """Mean cross-entropy, in nats per byte, of predicting each next byte of the window."""
        logits = self(window[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
