"""Forward + backward of one activation, against PyTorch's own op, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import optiacts
from benchmarks.timing import alternate, copy_bandwidth

SIZES = tuple(1 << power for power in (10, 12, 14, 16, 18, 20, 22, 24))
DTYPES = (torch.float32, torch.bfloat16)
PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gelu": (optiacts.gelu, functional.gelu),
    "silu": (optiacts.silu, functional.silu),
}


@dataclass(frozen=True)
class Row:
    """One line of the table. Times in µs; a ratio below 1 means that ours is faster."""

    activation: str
    dtype: str
    elements: int
    ours: float
    torch: float
    torch_compiled: float | None
    product: float  # two tensors multiplied: what any backward must at least do
    ratio: float  # of the medians
    ratio_best: float  # of the least times
    ratio_compiled: float | None
    roofline: float  # the least traffic at the measured copy bandwidth, as a share of our best time


def rows(compiled: bool, budget: float) -> Iterator[Row]:
    """Every activation, dtype and size in turn."""
    for name, pair in PAIRS.items():
        for dtype in DTYPES:
            for elements in SIZES:
                yield _row(name, *pair, dtype, elements, compiled, budget)


def _row(
    name: str,
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    elements: int,
    compiled: bool,
    budget: float,
) -> Row:
    x = torch.randn(elements).to(dtype).requires_grad_()
    grad = torch.randn(elements).to(dtype)

    def step(activation: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(activation(x), x, grad)

    contenders = {"ours": step(ours), "torch": step(theirs), "product": lambda: grad * grad}
    if compiled:
        torch.compiler.reset()
        contenders["compiled"] = step(torch.compile(theirs, dynamic=False))
    times = alternate(contenders, budget)
    traffic = elements * (5 * dtype.itemsize + 2 / 8)  # x, y; grad, y, result; the bits written and read
    bound = traffic / copy_bandwidth(elements, dtype)
    other = times.get("compiled")
    return Row(
        activation=name,
        dtype=str(dtype).removeprefix("torch."),
        elements=elements,
        ours=times["ours"].median * 1e6,
        torch=times["torch"].median * 1e6,
        torch_compiled=other.median * 1e6 if other else None,
        product=times["product"].median * 1e6,
        ratio=times["ours"].median / times["torch"].median,
        ratio_best=times["ours"].best / times["torch"].best,
        ratio_compiled=times["ours"].median / other.median if other else None,
        roofline=bound / times["ours"].best,
    )
