"""Dropout: the kernels, and PyTorch's own numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import optiacts
from optiacts.backends import eager
from optiacts.backends import triton as backend
from optiacts.curves import unimodal
from optiacts.packing import pack

from .common import DEVICE, DTYPES, INTERPRETED, Record, named, needs_gpu, relative

SHAPES = [(3, 17), (8, 96), (9, 250), *([] if INTERPRETED else [(64, 96), (40, 250), (512, 4096)])]


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels(shape: tuple[int, int], dtype: torch.dtype, record_property: Record) -> None:
    """The kernels of dropout against the eager backend: exact masks, and gradients behind a dropout.

    Their errors are in units of eps.
    """
    eps, most = torch.finfo(dtype).eps, 200 if dtype == torch.float32 else 4
    x, up, grad = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(3))
    kept, scale = torch.rand(shape, device=DEVICE) < 0.9, 1 / 0.9
    bits = backend.pack_dropped(kept)
    assert torch.equal(bits, pack(~kept))
    assert torch.equal(backend.scale_kept(x, bits, 2.0), torch.where(kept, 2 * x, 0 * x))
    for name in ("gelu", "silu"):
        curve = unimodal()[name]
        y = eager.scale_kept(curve.forward(x), bits, scale)
        side = pack(curve.left(x)) | bits
        got = backend.activation_backward(grad, y, side, curve, scale)
        due = grad.double() * scale * curve.derivative(x.double(), torch) * kept
        h, slot, planes = eager.gated_forward(x, up, curve)
        y, slot = eager.scale_kept(h, bits, scale), torch.where(kept, slot, 0.0)
        planes[..., -bits.shape[-1] :] |= bits
        gate_grad, up_grad = torch.empty_like(h), torch.empty_like(h)
        backend.gated_backward(grad, y, slot, planes, curve, gate_grad, up_grad, scale)
        found = {
            "activation": (got, due),
            "gate": (gate_grad, due * up.double()),
            "up": (up_grad, grad.double() * scale * curve.function(x.double(), torch) * kept),
        }
        for what, (ours, exact) in found.items():
            assert bool((ours[~kept] == 0).all()), (name, what)
            error = relative(ours, exact) / eps
            record_property(f"{name} {what}", error)
            assert error <= most, (name, what)


PAIRS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "plain": (lambda x, up: optiacts.dropout(x, 0.3), lambda x, up: functional.dropout(x, 0.3)),
    "inplace": (
        lambda x, up: optiacts.dropout(x * 1, 0.3, inplace=True),
        lambda x, up: functional.dropout(x * 1, 0.3, inplace=True),
    ),
    "gelu": (
        lambda x, up: optiacts.activation_dropout(x, "gelu", 0.3),
        lambda x, up: functional.dropout(functional.gelu(x), 0.3),
    ),
    "relu": (
        lambda x, up: optiacts.activation_dropout(x, "relu", 0.3),
        lambda x, up: functional.dropout(functional.relu(x), 0.3),
    ),
    "silu gate": (
        lambda x, up: optiacts.gated_dropout(x, up, "silu", 0.3),
        lambda x, up: functional.dropout(functional.silu(x) * up, 0.3),
    ),
}


@needs_gpu
@pytest.mark.parametrize("name", PAIRS)
def test_draws_as_pytorch(name: str, record_property: Record) -> None:
    """PyTorch's bits and its generator's state; two masks for two dropouts."""
    x, up = (torch.randn(96, 1000, device=DEVICE, requires_grad=True) for _ in range(2))
    ours, theirs = PAIRS[name]
    results = []
    for run in (ours, theirs):
        torch.cuda.manual_seed(7)
        y = run(x, up)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        results.append((y, grad, torch.cuda.get_rng_state()))
    (y, grad, state), (expected, due, wanted) = results
    assert torch.equal(y, expected)
    assert torch.equal(state, wanted)
    record_property("error", relative(grad, due))
    assert relative(grad, due) <= 1e-4
    assert not torch.equal(ours(x, up), ours(x, up))


@needs_gpu
def test_each_replay_of_a_graph_draws_anew() -> None:
    """And its backward has the mask of its forward."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # a leaf that autograd has not met on the legacy stream
        x = torch.randn(96, 1000, device=DEVICE, requires_grad=True)
        y = optiacts.activation_dropout(x, "gelu", 0.3)
        torch.autograd.grad(y, x, torch.ones_like(y))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = optiacts.activation_dropout(x, "gelu", 0.3)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    masks = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert bool((grad[y == 0] == 0).all())
        masks.append(y == 0)
    assert not torch.equal(*masks)
