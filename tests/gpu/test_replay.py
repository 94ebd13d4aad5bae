"""Calls of kernels that are replayed: see optiacts/replay.py. Other values than were recorded, the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import optiacts
from optiacts import host, recording, replay
from optiacts.backends import triton as backend
from optiacts.backends import triton_chain, triton_norm
from optiacts.chains import SavedChain
from optiacts.curves import get
from optiacts.norms import Bounds, Guard, Norm, Saved

from .common import DEVICE, DTYPES, named, needs_gpu

pytestmark = pytest.mark.skipif(host.lacking() is not None, reason=str(host.lacking()))

SILU = get("silu")
NORM = Norm(True, 1e-5, remainder=True)
Compute = Callable[..., Any]


def activation(x: Tensor, grad: Tensor) -> Sequence[Tensor]:
    y, bits = backend.activation_forward(x, SILU, ())
    return y, bits, backend.activation_backward(grad, y, bits, SILU, None)


def product(x: Tensor, grad: Tensor) -> Sequence[Tensor]:
    h, slot, bits = backend.gated_forward(x, grad, SILU, ())
    by_gate, by_up = torch.empty_like(h), torch.empty_like(h)
    backend.gated_backward(grad, h, slot, bits, SILU, by_gate, by_up, None)
    return h, slot, bits, by_gate, by_up


def dropout(x: Tensor, grad: Tensor) -> Sequence[Tensor]:
    bits = backend.pack_dropped(x > 0)
    return bits, backend.scale_kept(grad, bits, 1.25)


def norm(x: Tensor, grad: Tensor) -> Sequence[Tensor]:
    weight = x.new_ones(x.shape[-1], dtype=torch.float32)
    mean, rstd, bits = triton_norm.norm_statistics(x, x, weight, None, NORM)
    saved = Saved(x, None, rstd, weight, None, None, None, bits, True, True)
    return mean, rstd, *triton_norm.norm_backward(grad, saved, x.dtype, x.dtype)


def guarded_norm(x: Tensor, grad: Tensor) -> Sequence[Tensor]:
    """Writes to a number that it is given, as ``ops.norm`` does."""
    weight, poisoned = x.new_ones(x.shape[-1], dtype=torch.float32), x.new_zeros((), dtype=torch.bool)
    saved = Saved(
        x, None, x.new_ones((*x.shape[:-1], 1), dtype=torch.float32), *[weight, *5 * [None]][:5], True, True
    )
    guard = Guard(poisoned, Bounds(2.0, 4.0, 1.0, 0.0, 1e30))  # no weight is so large
    return *triton_norm.norm_backward(grad, saved, x.dtype, x.dtype, guard), poisoned


def chain(x: Tensor, grad: Tensor) -> Sequence[Tensor]:
    y, bits = triton_chain.forward(x, SILU, lambda z: z.unsqueeze(1))
    rstd = x.new_ones((x.shape[0], 1), dtype=torch.float32)
    scale = x.new_ones(1, dtype=torch.float32)
    saved = SavedChain(y.unsqueeze(1), bits, rstd, scale, None, None, None, None, "silu", "rows", True, False)
    return y, bits, *triton_chain.chain_backward(grad.unsqueeze(1), saved, x.dtype)


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """To the bit, NaN included."""
    return all(
        torch.equal(*(each.contiguous().view(torch.uint8) for each in pair)) for pair in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize(
    "compute", [activation, product, dropout, norm, guarded_norm, chain], ids=lambda c: c.__name__
)
def test_kernels_are_started_again(compute: Compute, dtype: torch.dtype) -> None:
    replayed, shape = replay.replayed(compute), (6, 64)
    samples = [
        (torch.randn(shape, device=DEVICE).to(dtype), torch.randn(shape, device=DEVICE).to(dtype)) for _ in range(5)
    ]
    for sample in samples[:3]:
        replayed(*sample)
    before = replay.count()
    found = [replayed(*sample) for sample in samples]
    assert replay.count() == before + len(samples)
    assert all(same(compute(*sample), mine) for sample, mine in zip(samples, found, strict=True))


CALLS: dict[str, Compute] = {
    "gelu": lambda x, *_: optiacts.gelu(x),
    "swiglu": lambda x, u, *_: optiacts.swiglu(x, u),
    "dropout": lambda x, *_: optiacts.dropout(x, 0.25),
    "layer_norm": lambda x, _, w, b: optiacts.layer_norm(x, (64,), w, b),
    "rms_norm": lambda x, _, w, __: optiacts.rms_norm(x, (64,), w),
    "chain": lambda x, _, w, b: optiacts.norm_activation(x, torch.nn.GroupNorm(4, 64, device=DEVICE), "silu"),
}


@needs_gpu
@pytest.mark.parametrize("name", CALLS)
def test_a_step_is_that_of_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the current stream, which is another one half of the time."""
    call = CALLS[name]

    def step(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        x, up = (torch.randn(8, 64, device=DEVICE, requires_grad=True) for _ in range(2))
        weight, bias = (1 + torch.randn(64, device=DEVICE) / 8).requires_grad_(), torch.zeros(64, device=DEVICE)
        y = call(x, up, weight, bias)
        grads = torch.autograd.grad(y, (x, up, weight), torch.randn_like(y), allow_unused=True)
        return [y.detach(), *(grad for grad in grads if grad is not None), torch.rand(3, device=DEVICE)]

    stream = torch.cuda.Stream()

    def steps() -> list[list[Tensor]]:
        found = [step(seed) for seed in range(4)]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found += [step(seed) for seed in range(4)]
        torch.cuda.synchronize()
        return found

    steps()
    before = replay.count()
    found = steps()
    assert replay.count() > before
    monkeypatch.setattr(recording.Recorder, "plan", lambda *_: None)
    replay.forget()
    before = replay.count()
    wanted = steps()
    assert replay.count() == before
    assert all(same(mine, due) for mine, due in zip(found, wanted, strict=True))


@needs_gpu
def test_a_graph_is_captured_of_replays() -> None:
    x = torch.randn(8, 64, device=DEVICE, requires_grad=True)
    grad = torch.randn(8, 64, device=DEVICE)

    def step() -> Tensor:
        return torch.autograd.grad(optiacts.gelu(x), x, grad)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    before, graph = replay.count(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    assert replay.count() == before + 2
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(8, 64, device=DEVICE))
        graph.replay()
        assert torch.equal(captured, step())
