"""A converted model in every way that it may be run."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import optiacts

from .common import DEVICE, Record, named, needs_gpu

WORLDS = (
    (torch.float32, None, None),
    (torch.bfloat16, None, None),
    (torch.float32, torch.bfloat16, None),
    (torch.float32, torch.float16, None),
    (torch.bfloat16, None, "default"),
    (torch.bfloat16, None, "reduce-overhead"),
    (torch.float32, torch.bfloat16, "default"),
)


class Block(nn.Module):
    """A plain and a gated MLP, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 1024), nn.Linear(1024, 256)
        self.gate, self.up, self.down = nn.Linear(256, 768), nn.Linear(256, 768), nn.Linear(768, 256)
        self.norm, self.other_norm = nn.LayerNorm(256), nn.RMSNorm(256, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.second(functional.gelu(self.first(self.norm(x))))
        h = self.other_norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


@needs_gpu
@pytest.mark.parametrize(("dtype", "autocast", "mode"), WORLDS, **named)
def test_conversion(
    dtype: torch.dtype, autocast: torch.dtype | None, mode: str | None, record_property: Record
) -> None:
    """A converted model, alone, under autocast, compiled and replayed as a CUDA graph: its output is the same to the
    bit (compiled: nearly), its gradients are as good as PyTorch's, and it holds less."""
    exact = Block().to(DEVICE).double()
    x = torch.randn(4096, 256, device=DEVICE)
    _loss(exact(x.double())).backward()
    truth = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    found = {}
    for who in ("torch", "optiacts"):
        model = copy.deepcopy(exact).to(dtype)
        if who == "optiacts":
            optiacts.convert(model)
        torch.compiler.reset()
        run = torch.compile(model, mode=mode, fullgraph=True) if mode else model
        found[who] = _trained(run, model, x.to(dtype), autocast)
    (y, grads, held), (our_y, our_grads, our_held) = found["torch"], found["optiacts"]
    error, our_error = (float((g.double() - truth).norm() / truth.norm()) for g in (grads, our_grads))
    record_property("equal", torch.equal(y, our_y))
    record_property("error", our_error)
    record_property("PyTorch's", error)
    assert torch.equal(y, our_y) if mode is None else torch.allclose(y, our_y, rtol=0.02, atol=0.02)
    assert our_error <= 1.1 * error + 1e-6
    if mode != "reduce-overhead":  # graphs have their own pool
        record_property("held / PyTorch's", our_held / held)
        assert our_held <= 0.9 * held


@needs_gpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), **named)
def test_compiled_graphs_start_nothing_from_python(dtype: torch.dtype) -> None:
    """Of our ops none is left but what looks at a norm's weights."""
    model = Block().to(DEVICE, dtype)
    optiacts.convert(model)
    torch.compiler.reset()
    x = torch.randn(512, 256, device=DEVICE, dtype=dtype)
    _, code = run_and_get_code(lambda: _loss(torch.compile(model, fullgraph=True)(x)).backward())
    assert set(re.findall(r"optiacts\.(\w+)\.default\(", "".join(code))) == {"norm_factors"}


class Convolutions(nn.Module):
    """Conv, BatchNorm, SiLU, twice, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.other_norm = nn.BatchNorm2d(64), nn.BatchNorm2d(64)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.norm(self.first(x)))
        return functional.silu(self.other_norm(self.second(x)))


@needs_gpu
@pytest.mark.parametrize("way", ("eager", "checkpointed", "compiled"))
def test_converted_convolutions(way: str, record_property: Record) -> None:
    """Norms and activations in one: the same output, gradients as good as PyTorch's, and much less is held."""
    exact = Convolutions().to(DEVICE).double()
    x = torch.randn(16, 64, 32, 32, device=DEVICE)
    _loss(exact(x.double())).backward()
    truth = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    found = {}
    for who in ("torch", "optiacts"):
        model = copy.deepcopy(exact).float()
        if who == "optiacts":
            optiacts.convert(model)
        torch.compiler.reset()
        run = torch.compile(model, fullgraph=True) if way == "compiled" else model
        if way == "checkpointed":
            run = functools.partial(checkpoint, model, use_reentrant=False)
        found[who] = _trained(run, model, x.requires_grad_(), None)
    (y, grads, held), (our_y, our_grads, our_held) = found["torch"], found["optiacts"]
    error, our_error = (float((g.double() - truth).norm() / truth.norm()) for g in (grads, our_grads))
    record_property("error", our_error)
    record_property("PyTorch's", error)
    record_property("held / PyTorch's", our_held / held)
    assert torch.allclose(y, our_y, rtol=1e-2, atol=1e-2) if way == "compiled" else torch.equal(y, our_y)
    assert our_error <= 2 * error + 1e-5
    assert way == "checkpointed" or our_held <= 0.8 * held


def _loss(y: Tensor) -> Tensor:
    return (y if y.dtype == torch.float64 else y.float()).square().sum() / 64  # gradients that float16 can hold


def _trained(
    run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, autocast: torch.dtype | None
) -> tuple[Tensor, Tensor, int]:
    """The output of the last of three steps, the gradients, and the bytes allocated after its forward."""
    for _ in range(3):
        model.zero_grad()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            y = run(x)
        held = torch.cuda.memory_allocated() - before
        kept = y.detach().clone()
        _loss(y).backward()
    return kept, torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]), held
