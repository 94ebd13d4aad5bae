"""Selective checkpointing that keeps our ops: computed once, the same gradients, and the bytes that it says."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import optiacts
from benchmarks.checkpointing import alive
from optiacts.held.memory import storage_key

ROWS, WIDTH, HIDDEN = 64, 32, 128
TENSOR, BITS = ROWS * HIDDEN * 4, ROWS * HIDDEN // 8


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(optiacts.swiglu(self.gate(x), self.up(x)))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), optiacts.GELU(), nn.Linear(HIDDEN, WIDTH))


class Convolved(nn.Module):
    """A norm and an activation in one, between two convolutions; the tensors have the sizes of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(WIDTH, HIDDEN, 1), nn.Conv1d(HIDDEN, WIDTH, 1)
        self.act = optiacts.NormActivation(nn.GroupNorm(4, HIDDEN), "silu")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x.t().unsqueeze(0)))).squeeze(0).t()


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] = self.calls.get(func, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [plain, Gated, Convolved])
def test_our_ops_are_kept_and_nothing_else(make: Any) -> None:
    model, x = make(), torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    contexts = functools.partial(create_selective_checkpoint_contexts, optiacts.checkpoint_policy)

    def run() -> Tensor:
        return checkpoint(model, x, use_reentrant=False, context_fn=contexts).square().sum()

    state = {storage_key(tensor) for tensor in (x, *model.parameters())}
    kept = 2 * TENSOR + 2 * BITS if make is Gated else TENSOR + BITS
    result = ROWS * WIDTH * 4 + 4  # the output, whose square is taken, and the sum
    assert kept <= alive(run, state) - result <= kept + 64

    with Counting() as counted:
        loss = run()
        found = torch.autograd.grad(loss, [x, *model.parameters()])
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one, other)
    ours = {op: count for op, count in counted.calls.items() if op in optiacts.checkpoint_ops()}
    assert list(ours.values()) == [1]
    products = (torch.ops.aten.addmm.default, torch.ops.aten.convolution.default)
    assert sum(counted.calls.get(op, 0) for op in products) > sum(p.ndim > 1 for p in model.parameters())  # twice


def test_compiled_nothing_in_front_of_them_is_computed_again() -> None:
    model, x = Gated(), torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    contexts = functools.partial(create_selective_checkpoint_contexts, optiacts.checkpoint_policy)
    compiled = torch.compile(
        lambda x: checkpoint(model, x, use_reentrant=False, context_fn=contexts), backend="aot_eager"
    )
    saved = optiacts.saved_memory(compiled, x)
    assert saved.bytes == pytest.approx(2 * TENSOR + 2 * BITS + x.nbytes, abs=64)
    with Counting() as counted:
        found = torch.autograd.grad(saved.output.square().sum(), [x, *model.parameters()])
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one)
    products = sum(count for op, count in counted.calls.items() if op is torch.ops.aten.mm.default)
    assert products == 6  # those of the backward: two for each Linear
    assert torch.ops.aten.addmm.default not in counted.calls
