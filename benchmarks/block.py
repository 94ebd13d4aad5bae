"""One training step of a BERT-base layer (768, 12 heads, 3072), 8 x 128 tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

import optiacts
from benchmarks.timing import alternate


@dataclass(frozen=True)
class Row:
    """One line of the table: ms per step, and what autograd holds after the forward in MiB."""

    dtype: str
    ours: float
    torch: float
    ratio: float
    ratio_best: float
    ours_saved: float
    torch_saved: float


def rows(budget: float) -> Iterator[Row]:
    """fp32 and bf16 in turn."""
    for dtype in (torch.float32, torch.bfloat16):
        theirs = BertLayer(BertConfig(attn_implementation="sdpa"), layer_idx=0).to(dtype).train()
        ours = copy.deepcopy(theirs)
        ours.intermediate.intermediate_act_fn = optiacts.GELU()
        tokens = torch.randn(8, 128, 768, dtype=dtype)
        times = alternate({"ours": _step(ours, tokens), "torch": _step(theirs, tokens)}, budget)
        saved = [optiacts.saved_memory(layer, tokens).bytes / 2**20 for layer in (ours, theirs)]
        yield Row(
            dtype=str(dtype).removeprefix("torch."),
            ours=times["ours"].median * 1e3,
            torch=times["torch"].median * 1e3,
            ratio=times["ours"].median / times["torch"].median,
            ratio_best=times["ours"].best / times["torch"].best,
            ours_saved=saved[0],
            torch_saved=saved[1],
        )


def _step(layer: torch.nn.Module, tokens: torch.Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        output = layer(tokens)
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        hidden.float().square().mean().backward()
        optimizer.step()

    return step
