"""What the ops tell compilers of their results' strides is so, however their arguments lie in memory.

Inductor gives convolutions channels last, hands tensors on as they lie, and stops where an op does not keep its word.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

import optiacts
from optiacts import curves
from optiacts.backends import selection
from optiacts.ops import activation, chain, chain_compiled, clamp, dropout, gated, glu, norm

SHAPE, LAST = (2, 8, 4, 6), [0, 2, 3, 1]
HALF, DOUBLE = torch.float16, torch.float64

Call = tuple[Any, tuple[Any, ...]]


def activations(dtype: torch.dtype) -> Iterator[Call]:
    x = torch.randn(SHAPE).to(dtype)
    for name, order in itertools.product(("silu", "elu", "hardswish"), ([], LAST)):
        y, bits = activation.activation_forward(x.to(memory_format=_format(order)), name, order)
        yield activation.activation_forward, (x, name, order)
        yield activation.activation_backward, (x, y, bits, name, order)
    yield activation.activation_backward, (x, y, bits, "silu", order, 2.0)
    if dtype is HALF:
        yield activation.activation_backward, (x.float(), y, bits, "silu", order)


def gated_products(dtype: torch.dtype) -> Iterator[Call]:
    x = torch.randn(SHAPE).to(dtype)
    for order in ([], LAST):
        h, slot, bits = gated.gated_forward(x, x + 1, "silu", order)
        yield gated.gated_forward, (x, x + 1, "silu", order)
        yield gated.gated_backward, (x, h, slot, bits, "silu", order)
    h, slot, bits = gated.gated_forward(x, x + 1, "silu", [])
    yield gated.gated_backward_fused, (x, h, slot, bits, "silu", [])
    for dim in (1, 3):
        yield glu.glu_backward, (x, x, x, dim)


def dropouts_and_bounds(dtype: torch.dtype) -> Iterator[Call]:
    x = torch.randn(SHAPE).to(dtype)
    for order in ([], LAST):
        yield dropout.dropout_pack, (x > 0, order)
        yield dropout.dropout_scale, (x, dropout.dropout_pack(x > 0, order), 2.0, order)
    yield clamp.clamp_forward, (x, 0.0, 6.0)
    yield clamp.clamp_backward, (x, clamp.clamp_forward(x, 0.0, 6.0)[1])


def norms(dtype: torch.dtype) -> Iterator[Call]:
    x = torch.randn(SHAPE).to(dtype)
    mean, rstd, bits = norm.norm_statistics(x, x, None, None, 1e-5, True, True)
    kept = bits if dtype is HALF else None
    yield norm.norm_statistics, (x, x, None, None, 1e-5, True, True)
    if kept is not None:
        yield norm.norm_remainder, (x, x, None, None, mean, rstd)
    yield norm.norm_backward, (x, x, None, rstd, None, None, None, None, kept, True, True, dtype)
    factors = torch.ones(SHAPE[-1], dtype=rstd.dtype)
    yield norm.norm_backward, (x, x, None, rstd, factors, factors, None, None, kept, True, True, dtype)


def chained(dtype: torch.dtype) -> Iterator[Call]:
    x = torch.randn(SHAPE).to(dtype)
    y, bits = chain.chain_forward(x, "silu", 0, False)
    wide = DOUBLE if dtype is DOUBLE else torch.float32
    ones = torch.ones(SHAPE[1], dtype=wide)
    for last in (False, True):
        yield chain.chain_forward, (x, "silu", 0, last)
        yield chain.chain_statistics, (x.flatten(2), "rows", 1, 1e-5, True, last)
        yield chain.chain_statistics, (x.flatten(2), "batch", 1, 1e-5, False, last)
    for statistics, rstd in (("batch", ones), ("rows", ones[:2].unsqueeze(1))):
        fixed = (rstd, ones, ones, None, None, None, "silu", statistics, True, False, dtype)
        yield chain.chain_backward, (x.flatten(2), y.flatten(2), bits, *fixed)
        packed = chain_compiled.chain_pack((~(x < curves.get("silu").threshold(dtype))).to(torch.uint8), "silu", 0)
        fixed = (rstd, ones, ones, "silu", statistics, True, 0, dtype)
        yield chain_compiled.chain_gradients, (x, y, packed, *fixed)


def _format(order: list[int]) -> torch.memory_format:
    return torch.channels_last if order else torch.contiguous_format


def layouts(tensor: Tensor) -> list[Tensor]:
    """The same values: as they are, in two other orders of memory, and as a part of something longer."""
    if tensor.ndim < 2:
        return [tensor] * 4
    found = [tensor]
    for order in ([0, *range(2, tensor.ndim), 1], list(range(tensor.ndim))[::-1]):
        back = [order.index(d) for d in range(tensor.ndim)]
        found.append(tensor.permute(order).contiguous().permute(back))
    return [*found, torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]]


def variants(arguments: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Each tensor in each layout, alone and with all others in it."""
    tensors = [number for number, argument in enumerate(arguments) if isinstance(argument, Tensor)]
    for changed in ([], tensors, *([number] for number in tensors)):
        for choice in range(4):
            yield tuple(
                layouts(argument)[choice] if number in changed else argument
                for number, argument in enumerate(arguments)
            )


def told(results: Any) -> list[tuple[Any, ...]]:
    """Shape, dtype, and the strides of the dimensions that are longer than one."""
    all_results = results if isinstance(results, tuple | list) else (results,)
    return [
        (*r.shape, r.dtype, *(s for s, length in zip(r.stride(), r.shape, strict=True) if length > 1))
        for r in all_results
    ]


@pytest.mark.parametrize("dtype", [torch.float32, HALF, DOUBLE], ids=str)
@pytest.mark.parametrize("calls", [activations, gated_products, dropouts_and_bounds, norms, chained])
@pytest.mark.parametrize("backend", ["", "eager"], ids=["fastest", "eager"])
def test_strides(
    backend: str, calls: Callable[[torch.dtype], Iterator[Call]], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection.forget()
    monkeypatch.setenv(selection.VARIABLE, backend)
    try:
        for op, arguments in calls(dtype):
            for variant in variants(arguments):
                real = told(op(*variant))
                with FakeTensorMode() as mode:
                    fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in variant]
                    due = told(op(*fake))
                assert real == due, (op, [a.stride() for a in variant if isinstance(a, Tensor)])
    finally:
        selection.forget()


class Block(nn.Module):
    """Nothing here is one step with its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.first(x))
        x = functional.dropout(functional.hardtanh(self.second(x)), 0.25, self.training)
        return functional.gelu(x) * x


def test_convolutions_compile() -> None:
    """Planes when they are traced, channels last when they run."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Block().eval()
    converted = copy.deepcopy(model)
    optiacts.convert(converted)
    compiled = torch.compile(converted, fullgraph=True)
    x = torch.randn(2, 16, 8, 8)
    for run in (model, compiled):
        run(x).square().sum().backward()
    for one, true in zip(converted.parameters(), model.parameters(), strict=True):
        assert one.grad is not None and true.grad is not None
        assert (one.grad - true.grad).norm() <= 1e-5 * true.grad.norm()
    compiled.train()
    compiled(x).square().sum().backward()
