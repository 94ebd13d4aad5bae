"""Conv -> norm -> SiLU -> Conv under torch.compile: what it holds, and the time of a step, against compiled PyTorch.

    python -m benchmarks.chains_compiled --pairs 20

Forward and backward of two 1 x 1 convolutions with a norm and SiLU between them, one thread. The order is A B B A; a
ratio is that within a round, and the bound is the upper 95 % one of their median. Times are those of the processor,
which other users of the machine disturb less.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import optiacts
from benchmarks.timing import bound, there_and_back

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": nn.BatchNorm2d,
    "GroupNorm": lambda channels: nn.GroupNorm(channels // 8, channels),
}
SHAPES = ((8, 128, 32, 32), (16, 64, 112, 112))


def contenders(norm: str, shape: tuple[int, ...], channels_last: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """The loss of the same block, as it is and converted."""
    torch.manual_seed(0)
    channels = shape[1]
    first, last = nn.Conv2d(channels, channels, 1, bias=False), nn.Conv2d(channels, channels, 1)
    original = nn.Sequential(first, NORMS[norm](channels), nn.SiLU(), last)
    x = torch.randn(shape)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for name in ("PyTorch", "OptiActs"):
        model = copy.deepcopy(original)
        if name == "OptiActs":
            optiacts.convert(model)
        compiled: Any = torch.compile(model, fullgraph=True)
        found[name] = functools.partial(_loss, compiled, x)
    return found


def _loss(model: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(x).square().mean()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    for norm, shape, channels_last in itertools.product(NORMS, SHAPES, (False, True)):
        runs = contenders(norm, shape, channels_last)
        held = {}
        for name, run in runs.items():
            run().backward()
            held[name] = optiacts.saved_memory(run).bytes / 2**20
        seconds = there_and_back(runs, pairs)
        ratios = [a / b for a, b in zip(seconds["OptiActs"], seconds["PyTorch"], strict=True)]
        what = f"{norm} {' x '.join(map(str, shape))} {'channels last' if channels_last else 'planes'}"
        print(
            f"{what}: held {held['OptiActs']:.2f} of {held['PyTorch']:.2f} MiB, "
            f"time median {statistics.median(ratios):.3f}, bound {bound(ratios):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
