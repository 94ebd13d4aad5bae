"""PyTorch's own transformers, and the transformer block of diffusers with every feed-forward that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from zoo.entry import LENGTH, Build, Entry, normal


def _encoder(**options: Any) -> Build:
    return lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 128, batch_first=True, **options), 2, enable_nested_tensor=False
    )


def _decoder(**options: Any) -> Build:
    return lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 128, batch_first=True, **options), 2)


def _block(activation: str) -> Build:
    def build() -> nn.Module:
        from diffusers.models.attention import BasicTransformerBlock

        return BasicTransformerBlock(32, 4, 8, activation_fn=activation)

    return build


_ACTIVATIONS: dict[str, str | Callable[[Tensor], Tensor]] = {
    "relu": "relu",
    "gelu": "gelu",
    "F.silu": functional.silu,
    "nn.Mish": nn.Mish(),
}
_sequence = normal(src=(LENGTH, 32))
_sequences = normal(tgt=(LENGTH, 32), memory=(8, 32))

_FEED_FORWARDS = {
    "GEGLU": "geglu",
    "SwiGLU": "swiglu",
    "ApproximateGELU": "geglu-approximate",
    "GELU": "gelu",
    "tanh GELU": "gelu-approximate",
    "SiLU": "linear-silu",
}

ENTRIES = (
    *(
        Entry(f"block, {name} (diffusers)", _block(activation), normal(hidden_states=(LENGTH, 32)))
        for name, activation in _FEED_FORWARDS.items()
    ),
    *(Entry(f"nn.TransformerEncoder, {name}", _encoder(activation=a), _sequence) for name, a in _ACTIVATIONS.items()),
    *(
        Entry(f"nn.TransformerDecoder, {name}", _decoder(activation=a), _sequences)
        for name, a in _ACTIVATIONS.items()
    ),
    Entry("nn.TransformerEncoder, gelu, no dropout", _encoder(activation="gelu", dropout=0.0), _sequence),
    Entry("nn.TransformerEncoder, gelu, norm first", _encoder(activation="gelu", norm_first=True), _sequence),
)
