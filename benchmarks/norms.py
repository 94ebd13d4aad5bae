"""Forward + backward of norms that keep their output, against PyTorch's own and against one written out in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import optiacts
from benchmarks.timing import alternate
from optiacts import functional_norm
from optiacts.norms import Norm

SHAPES = ((2048, 1024), (512, 4096))
DTYPES = (torch.float32, torch.bfloat16)
EPS = 1e-6

Op = Callable[[Tensor, Tensor, Tensor], Tensor]


def written_out(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm as the models of transformers have it."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def _converted(x: Tensor, weight: Tensor, _: Tensor) -> Tensor:
    return functional_norm.norm(x, weight, None, Norm(False, EPS), lambda x: written_out(x, weight))


CASES: dict[str, tuple[Op, Op]] = {
    "layer_norm": (
        lambda x, w, b: optiacts.layer_norm(x, w.shape, w, b, EPS),
        lambda x, w, b: functional.layer_norm(x, w.shape, w, b, EPS),
    ),
    "rms_norm": (
        lambda x, w, _: optiacts.rms_norm(x, w.shape, w, EPS),
        lambda x, w, _: functional.rms_norm(x, w.shape, w, EPS),
    ),
    "rms_norm written out": (_converted, lambda x, w, _: written_out(x, w)),
}


@dataclass(frozen=True)
class Row:
    """One line of the table. Times in µs; a ratio below 1 means that ours is faster."""

    norm: str
    dtype: str
    rows: int
    channels: int
    ours: float
    torch: float
    ratio: float  # of the medians
    ratio_best: float  # of the least times


def rows(budget: float) -> Iterator[Row]:
    """Every norm, dtype and shape in turn, measured A B B A."""
    for name, ops in CASES.items():
        for dtype in DTYPES:
            for shape in SHAPES:
                yield _row(name, *ops, dtype, shape, budget)


def _row(name: str, ours: Op, theirs: Op, dtype: torch.dtype, shape: tuple[int, int], budget: float) -> Row:
    x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
    weight = (1 + 0.1 * torch.randn(shape[-1])).to(dtype)
    bias = (0.1 * torch.randn(shape[-1])).to(dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def step(op: Op) -> Callable[[], object]:
        return lambda: torch.autograd.grad(op(*inputs), inputs, grad, allow_unused=True)

    contenders = {"ours": step(ours), "torch": step(theirs), "torch again": step(theirs), "ours again": step(ours)}
    times = alternate(contenders, budget)
    medians = [(times[key].median + times[f"{key} again"].median) / 2 for key in ("ours", "torch")]
    least = [min(times[key].best, times[f"{key} again"].best) for key in ("ours", "torch")]
    return Row(
        norm=name,
        dtype=str(dtype).removeprefix("torch."),
        rows=shape[0],
        channels=shape[1],
        ours=medians[0] * 1e6,
        torch=medians[1] * 1e6,
        ratio=medians[0] / medians[1],
        ratio_best=least[0] / least[1],
    )
