"""A training step of a converted model against that of the model as it is: eager by eager, compiled by compiled."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.bert.modeling_bert import BertLayer

import optiacts
from benchmarks.contract import PAIRS, STEP, Judged
from benchmarks.timing import bound, in_pairs

DTYPES = (torch.float32, torch.bfloat16)
VOCABULARY = 1000


@dataclass(frozen=True)
class Model:
    """A model, and what it is called with."""

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.dtype], dict[str, Tensor]]


def _tokens(_: torch.dtype) -> dict[str, Tensor]:
    ids = torch.randint(0, VOCABULARY, (2, 256))
    return {"input_ids": ids, "labels": ids}


def _gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=512, n_layer=2, n_head=8, n_positions=256, use_cache=False)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # else it warns once, which cuts the graphs of the one that is compiled first
    return model


def _block() -> nn.Module:
    """Conv-BN-SiLU, twice, as detectors have it."""
    layers = [(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.SiLU()) for _ in range(2)]
    return nn.Sequential(*(part for layer in layers for part in layer), nn.Conv2d(64, 64, 1))


MODELS = {
    "BERT-base layer, 8 x 128 tokens": Model(
        lambda: BertLayer(BertConfig(attn_implementation="sdpa"), layer_idx=0),
        lambda dtype: {"hidden_states": torch.randn(8, 128, 768).to(dtype)},
    ),
    "Llama, 2 layers of 512, 2 x 256 tokens": Model(
        lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=2,
                num_attention_heads=8, use_cache=False,
            )
        ),
        _tokens,
    ),
    "GPT-2, 2 layers of 512, dropouts, 2 x 256 tokens": Model(
        _gpt2,
        _tokens,
    ),
    "Conv-BN-SiLU, 2 of 64 channels, 8 x 32 x 32": Model(
        _block, lambda dtype: {"input": torch.randn(8, 64, 32, 32).to(dtype)}
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: ms per step, and what autograd holds after the forward in MiB."""

    model: str
    dtype: str
    how: str
    ours_ms: float
    torch_ms: float
    ratio: float
    ratio_bound: float
    ours_held: float
    torch_held: float


def rows(compiled: bool, budget: float, names: Sequence[str] = tuple(MODELS)) -> Iterator[Row]:
    """Eager in both dtypes, and compiled in float32."""
    for name in names:
        for dtype in DTYPES:
            yield _row(name, dtype, "eager", budget)
        if compiled:
            yield _row(name, torch.float32, "compiled", budget)


def _row(name: str, dtype: torch.dtype, how: str, budget: float) -> Row:
    model = MODELS[name]
    torch.manual_seed(0)
    theirs = model.make().to(dtype).train()
    inputs = model.inputs(dtype)
    ours = copy.deepcopy(theirs)
    optiacts.convert(ours)
    calls: list[Any] = [ours, theirs]
    if how == "compiled":
        torch.compiler.reset()
        calls = [torch.compile(each, dynamic=False) for each in calls]
    step, other = (_step(call, part, inputs) for call, part in zip(calls, (ours, theirs), strict=True))
    held = [optiacts.saved_memory(lambda call=call: _loss(call(**inputs))).bytes / 2**20 for call in calls]
    pairs = in_pairs(step, other, budget, PAIRS)
    return Row(
        model=name,
        dtype=str(dtype).removeprefix("torch."),
        how=how,
        ours_ms=statistics.median(pairs.ours) * 1e3,
        torch_ms=statistics.median(pairs.theirs) * 1e3,
        ratio=statistics.median(pairs.ratios),
        ratio_bound=bound(pairs.ratios),
        ours_held=held[0],
        torch_held=held[1],
    )


def _step(call: Callable[..., Any], model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        _loss(call(**inputs)).backward()
        optimizer.step()

    return step


def _loss(output: Any) -> Tensor:
    """Its own, where a model has one."""
    own: Tensor | None = getattr(output, "loss", None)
    if own is not None:
        return own
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden.float().square().mean()


def judged(found: Sequence[Row]) -> Iterator[Judged]:
    """Each line against its limit."""
    for row in found:
        yield Judged(f"{row.model}, {row.dtype}, {row.how}", row.ratio_bound, STEP)
