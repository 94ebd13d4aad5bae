"""A small Llama under torch.compile: what it holds, and the time of a step, against compiled PyTorch.

    python -m benchmarks.norms_compiled --pairs 20

Forward and backward of hidden 512, intermediate 1408, 4 layers, 2 x 512 tokens, float32, one thread. The order is
A B C C B A ...; a ratio is that within a round, and the bound is the upper 95 % one of their median.
Times are those of the processor, which other users of the machine disturb less.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import transformers

import optiacts
from benchmarks.timing import bound, there_and_back


def contenders() -> dict[str, Callable[[], torch.Tensor]]:
    """The loss of the same model, as it is, with today's activations, and with norms as well."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        use_cache=False,
    )
    original = transformers.LlamaForCausalLM(config).train()
    ids = torch.randint(0, 1000, (2, 512))
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for name in ("PyTorch", "without norms", "OptiActs"):
        model = copy.deepcopy(original)
        if name != "PyTorch":
            optiacts.convert(model, norms=name == "OptiActs")
        compiled = torch.compile(model, fullgraph=True)
        found[name] = functools.partial(_loss, compiled, ids)
    return found


def _loss(model: Callable[..., Any], ids: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=ids).logits.square().mean()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    runs = contenders()
    for name, run in runs.items():
        with torch._dynamo.config.patch(recompile_limit=64):
            print(f"{name:14s} holds {optiacts.saved_memory(run).bytes / 2**20:7.2f} MiB")
        run().backward()
    seconds = there_and_back(runs, pairs)
    for name in ("without norms", "OptiActs"):
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds["PyTorch"], strict=True)]
        print(f"{name:14s} / PyTorch: median {statistics.median(ratios):.3f}, bound {bound(ratios):.3f}")
    ratios = [ours / theirs for ours, theirs in zip(seconds["OptiActs"], seconds["without norms"], strict=True)]
    print(f"{'OptiActs':14s} / without norms: median {statistics.median(ratios):.3f}, bound {bound(ratios):.3f}")


if __name__ == "__main__":
    main()
