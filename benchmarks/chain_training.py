"""A small convolutional net on scikit-learn's digits, trained as it is and with chains: is the result the same?

    python -m benchmarks.chain_training            needs scikit-learn: pip install 'optiacts[training]'

Three times convolution, norm, SiLU, then a Linear; BatchNorm or GroupNorm; float32 and bfloat16 autocast; five seeds,
AdamW, the same batches. Losses are in nats, on a fifth of the digits that is held out. As in docs/training.md a mean
difference of more than a tenth of the spread of PyTorch's seeds fails. The control loses the side bits: each input is
taken for right of the minimum. Writes benchmarks/results/chain_training.csv; the exit status is 1 if a verdict fails.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from benchmarks.training_runs import Comparison, train, unchanged
from benchmarks.training_tasks import Task
from optiacts import replay
from optiacts.backends import eager_chain, native_chain

RESULTS = Path(__file__).with_name("results") / "chain_training.csv"
BATCH, HELD_OUT = 64, 360
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": nn.BatchNorm2d,
    "GroupNorm": lambda channels: nn.GroupNorm(4, channels),
}


class Net(nn.Module):
    """Digits of 8 x 8 to ten logits."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, 1, bias=False)
            for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1))
        )
        self.norms = nn.ModuleList(norm(conv.out_channels) for conv in self.convs)  # type: ignore[arg-type]
        self.act, self.head = nn.SiLU(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.act(norm(conv(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def digits(norm: str, images: Tensor, labels: Tensor, steps: int = 60) -> Task:
    """The task of images (count, 1, 8, 8) and their labels, in an order that is mixed once."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]

    def endless(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(HELD_OUT, len(labels), (BATCH,), generator=generator)
            yield images[chosen], labels[chosen]

    return Task(
        name=norm,
        steps=steps,
        learning_rate=3e-3,
        build=functools.partial(Net, NORMS[norm]),
        batches=endless,
        held_out=[(images[:HELD_OUT], labels[:HELD_OUT])],
        loss=_loss,
    )


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]).float(), batch[1])


@contextlib.contextmanager
def side_bits_lost() -> Iterator[None]:
    """Chains whose side bits are all zero."""

    def forward(z: Tensor, curve: Any, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return curve.forward(z), torch.zeros_like(eager_chain.side_bits(rows(z), curve))

    with contextlib.ExitStack() as patched:
        for kernels, name in itertools.product((eager_chain, native_chain), ("forward", "forward_")):
            patched.enter_context(mock.patch.object(kernels, name, forward))
        patched.callback(replay.forget)  # what was recorded with bits, or without
        replay.forget()
        yield


def compared(task: Task, bfloat16: bool, seeds: range, lost: bool = False) -> Comparison:
    """PyTorch's trainings and ours, or those of the control."""
    with side_bits_lost() if lost else contextlib.nullcontext():
        return Comparison(
            *(tuple(train(task, s, bfloat16, change) for s in seeds) for change in (unchanged, _converted))
        )


def _converted(model: nn.Module) -> None:
    report = optiacts.convert(model)
    assert sum("+ silu" in entry.what for entry in report.converted) > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    chosen = parser.parse_args()
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as missing:
        print(f"{missing}: pip install 'optiacts[training]'", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target)
    bad = False
    rows: list[dict[str, Any]] = []
    for norm in NORMS:
        task = digits(norm, images, labels, chosen.steps)
        for precision, lost in (("fp32", False), ("bf16", False), ("fp32", True)):
            found = compared(task, precision == "bf16", range(chosen.seeds), lost)
            good = found.same_start and found.within_spread
            good = good and all(run.after < 0.9 * run.before for run in (*found.torch, *found.ours) if not lost)
            bad |= good is lost
            rows.append(
                {
                    "norm": norm + ", control: side bits lost" * lost,
                    "precision": precision,
                    "before": f"{fmean(run.before for run in found.torch):.4f}",
                    "PyTorch": f"{fmean(run.after for run in found.torch):.5f}",
                    "OptiActs": f"{fmean(run.after for run in found.ours):.5f}",
                    "spread": f"{found.spread:.5f}",
                    "mean difference": f"{found.difference:+.1e}",
                    "largest": f"{max(map(abs, found.differences)):.1e}",
                    "of the spread": f"{found.share:.4f}",
                    "passes": good,
                }
            )
            print(rows[-1], flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
