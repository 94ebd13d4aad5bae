"""A tiny Llama and made-up text, for the examples of trainers."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = 4
CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=88,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def new_model() -> LlamaForCausalLM:
    """The same initial weights each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).train()


def text(count: int = 16, length: int = 32) -> list[dict[str, torch.Tensor]]:
    """Sequences in which each token tells the next one."""
    torch.manual_seed(1)
    ids = (torch.randint(0, 64, (count, 1)) + 7 * torch.arange(length)) % 64
    return [{"input_ids": row, "labels": row} for row in ids]


def batch(count: int = 4) -> dict[str, torch.Tensor]:
    """A batch of them."""
    rows = text(count)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
