"""Forward + backward of activations and gated products, against PyTorch's own op, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import optiacts
from benchmarks.timing import alternate, copy_bandwidth

SIZES = tuple(1 << power for power in (10, 12, 14, 16, 18, 20, 22, 24))
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """An op, PyTorch's way to compute it, and the least traffic of forward + backward."""

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    inputs: int
    tensors_moved: int
    bits_moved: int  # per element


CASES = {
    # x -> y; grad, y -> result; the side bit written and read
    "gelu": Case(optiacts.gelu, functional.gelu, 1, tensors_moved=5, bits_moved=2),
    "silu": Case(optiacts.silu, functional.silu, 1, tensors_moved=5, bits_moved=2),
    # gate, up -> h, slot; grad, h, slot -> two results; two bits written and read
    "swiglu": Case(optiacts.swiglu, lambda g, u: functional.silu(g) * u, 2, tensors_moved=9, bits_moved=4),
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


def rows(sizes: Sequence[int], compiled: bool, budget: float) -> Iterator[Row]:
    """Every op, dtype and size in turn."""
    for name, case in CASES.items():
        for dtype in DTYPES:
            for elements in sizes:
                yield _row(name, case, dtype, elements, compiled, budget)


def _row(name: str, case: Case, dtype: torch.dtype, elements: int, compiled: bool, budget: float) -> Row:
    inputs = [torch.randn(elements).to(dtype).requires_grad_() for _ in range(case.inputs)]
    grad = torch.randn(elements).to(dtype)

    def step(op: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(op(*inputs), inputs, grad)

    contenders = {"ours": step(case.ours), "torch": step(case.theirs), "product": lambda: grad * grad}
    if compiled:
        torch.compiler.reset()
        contenders["compiled"] = step(torch.compile(case.theirs, dynamic=False))
    times = alternate(contenders, budget)
    traffic = elements * (case.tensors_moved * dtype.itemsize + case.bits_moved / 8)
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
