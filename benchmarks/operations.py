"""Forward + backward of one operation, against PyTorch's own way to compute it."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from benchmarks.contract import MORE_US, PAIRS, Judged, Limits, geometric_mean
from benchmarks.timing import bound, in_pairs
from optiacts import functional_norm
from optiacts.norms import Norm

FEW = 1 << 12  # elements, where the call is what takes time
SIZES = (FEW, 1 << 16, 1 << 20, 3 << 20, 1 << 24)
DTYPES = (torch.float32, torch.bfloat16)
COLUMNS = 1024  # of what is normalised together
CHANNELS = 64  # of an image
EPS = 1e-6
P = 0.1  # of a dropout

Op = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """An operation, PyTorch's way, and its inputs for so many elements."""

    ours: Op
    theirs: Op
    inputs: Callable[[int], list[Tensor]]


def _one(elements: int) -> list[Tensor]:
    return [torch.randn(elements)]


def _two(elements: int) -> list[Tensor]:
    return [torch.randn(elements), torch.randn(elements)]


def _rows(elements: int) -> list[Tensor]:
    """x, a weight and a bias, as training leaves them."""
    weight, bias = 1 + 0.1 * torch.randn(COLUMNS), 0.1 * torch.randn(COLUMNS)
    return [torch.randn(elements // COLUMNS, COLUMNS), weight, bias]


def _image(elements: int) -> list[Tensor]:
    """The same of a few images with square channels."""
    side = 32 if elements >= 1 << 16 else 4
    weight, bias = 1 + 0.1 * torch.randn(CHANNELS), 0.1 * torch.randn(CHANNELS)
    return [torch.randn(elements // (CHANNELS * side * side), CHANNELS, side, side), weight, bias]


def written_out(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm as the models of transformers have it."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def _converted(x: Tensor, weight: Tensor, _: Tensor) -> Tensor:
    return functional_norm.norm(x, weight, None, Norm(False, EPS), lambda x: written_out(x, weight))


def _chain(make: Callable[[int], Any]) -> Case:
    """A norm of channels and SiLU; its parameters stay in float32."""

    @functools.cache
    def norm(weight: nn.Parameter, bias: nn.Parameter) -> nn.Module:
        made = make(CHANNELS)
        made.weight, made.bias = weight, bias
        return made

    return Case(
        lambda x, *parameters: optiacts.norm_activation(x, norm(*parameters), "silu"),
        lambda x, *parameters: functional.silu(norm(*parameters)(x)),
        _image,
    )


CASES = {
    "gelu": Case(optiacts.gelu, functional.gelu, _one),
    "silu": Case(optiacts.silu, functional.silu, _one),
    "swiglu": Case(optiacts.swiglu, lambda gate, up: functional.silu(gate) * up, _two),
    "dropout": Case(lambda x: optiacts.dropout(x, P), lambda x: functional.dropout(x, P), _one),
    "gelu, dropout": Case(
        lambda x: optiacts.dropout(optiacts.gelu(x), P), lambda x: functional.dropout(functional.gelu(x), P), _one
    ),
    "layer_norm": Case(
        lambda x, w, b: optiacts.layer_norm(x, w.shape, w, b, EPS),
        lambda x, w, b: functional.layer_norm(x, w.shape, w, b, EPS),
        _rows,
    ),
    "rms_norm": Case(
        lambda x, w, _: optiacts.rms_norm(x, w.shape, w, EPS),
        lambda x, w, _: functional.rms_norm(x, w.shape, w, EPS),
        _rows,
    ),
    "rms_norm, written out": Case(_converted, lambda x, w, _: written_out(x, w), _rows),
    "batch_norm, silu": _chain(nn.BatchNorm2d),
    "group_norm, silu": _chain(lambda channels: nn.GroupNorm(16, channels)),
}


@dataclass(frozen=True)
class Row:
    """One line of the table. Below a ratio of 1 ours is faster; bounds are the upper 95 % ones of a median."""

    operation: str
    dtype: str
    elements: int
    ours_us: float
    torch_us: float
    ratio: float
    ratio_bound: float
    more_us_bound: float


def rows(sizes: Sequence[int], budget: float, names: Sequence[str] = tuple(CASES)) -> Iterator[Row]:
    """Every operation, dtype and size in turn."""
    for name in names:
        for dtype in DTYPES:
            for elements in sizes:
                yield _row(name, dtype, elements, budget)


def _row(name: str, dtype: torch.dtype, elements: int, budget: float) -> Row:
    case = CASES[name]
    x, *more = case.inputs(elements)
    more = [t if case.inputs is _image else t.to(dtype) for t in more]
    inputs = [nn.Parameter(t) for t in (x.to(dtype), *more)]
    grad = torch.randn(inputs[0].shape).to(dtype)

    def step(op: Op) -> Callable[[], object]:
        return lambda: torch.autograd.grad(op(*inputs), inputs, grad, allow_unused=True)

    pairs = in_pairs(step(case.ours), step(case.theirs), budget, PAIRS)
    return Row(
        operation=name,
        dtype=str(dtype).removeprefix("torch."),
        elements=elements,
        ours_us=statistics.median(pairs.ours) * 1e6,
        torch_us=statistics.median(pairs.theirs) * 1e6,
        ratio=statistics.median(pairs.ratios),
        ratio_bound=bound(pairs.ratios),
        more_us_bound=bound(pairs.more) * 1e6,
    )


def judged(found: Sequence[Row], limits: Limits) -> Iterator[Judged]:
    """Each line against its limit, and the geometric mean of the ratios."""
    for row in found:
        what = f"{row.operation}, {row.dtype}, {row.elements} elements"
        if row.elements <= FEW:
            yield Judged(what, row.more_us_bound, MORE_US, " µs more")
        else:
            yield Judged(what, row.ratio_bound, limits.single)
    ratios = [row.ratio for row in found if row.elements > FEW]
    if ratios:
        yield Judged("geometric mean of the ratios", geometric_mean(ratios), limits.mean)
