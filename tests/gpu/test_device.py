"""What only a GPU has: graphs, streams, other devices, waiting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import optiacts
from optiacts import ops

from .common import DEVICE, needs_gpu

pytestmark = needs_gpu


def test_graph_capture() -> None:
    """Forward and backward captured in a CUDA graph and replayed on new data."""
    x, grad = torch.randn(64, 1024, device=DEVICE), torch.randn(64, 1024, device=DEVICE)

    def step() -> tuple[Tensor, Tensor]:
        y, bits = ops.activation_forward(x, "gelu", [])
        return y, ops.activation_backward(grad, y, bits, "gelu", [])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    for replayed, called in zip(captured, step(), strict=True):
        assert torch.equal(replayed, called)


def test_streams() -> None:
    """The kernels run on the current stream: behind a sleep and a fill that are queued there."""
    x = torch.zeros(1 << 20, device=DEVICE)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.fill_(2.0)
        y, bits = ops.activation_forward(x, "silu", [])
        grad = ops.activation_backward(x, y, bits, "silu", [])
    side.synchronize()
    assert torch.equal(y, torch.nn.functional.silu(x))
    assert (grad > 2).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device() -> None:
    """Tensors on a GPU that is not the current one."""
    x = torch.randn(4096, device="cuda:1")
    y, bits = ops.activation_forward(x, "gelu", [])
    ops.activation_backward(y, y, bits, "gelu", [])
    assert torch.cuda.current_device() == 0
    assert torch.equal(y, torch.nn.functional.gelu(x))


def test_no_synchronisation() -> None:
    """Once compiled, no call waits for the GPU."""
    x = torch.randn(64, 1000, device=DEVICE, requires_grad=True)
    optiacts.gelu(x).backward(x.detach())
    torch.cuda.set_sync_debug_mode("error")
    try:
        optiacts.gelu(x).backward(x.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
