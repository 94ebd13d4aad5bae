"""What only a GPU has: graphs, streams, other devices, waiting."""

from __future__ import annotations

import torch
from torch import Tensor

import optiacts
from optiacts import ops

from .common import BrokenPromiseError, Report


def graph_capture(device: torch.device, dry: bool) -> Report:
    """Forward and backward captured in a CUDA graph and replayed on new data."""
    if dry:
        return {"skipped": "needs a GPU"}
    x, grad = torch.randn(64, 1024, device=device), torch.randn(64, 1024, device=device)

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
    if not all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True)):
        raise BrokenPromiseError("replay differs from a plain call")
    return {"replayed": True}


def streams(device: torch.device, dry: bool) -> Report:
    """The kernels run on the current stream: behind a sleep and a fill that are queued there."""
    if dry:
        return {"skipped": "needs a GPU"}
    x = torch.zeros(1 << 20, device=device)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.fill_(2.0)
        y, bits = ops.activation_forward(x, "silu", [])
        grad = ops.activation_backward(x, y, bits, "silu", [])
    side.synchronize()
    if not torch.equal(y, torch.nn.functional.silu(x)) or not (grad > 2).all():
        raise BrokenPromiseError("a kernel did not wait for the stream it was called on")
    return {"side stream": True}


def other_device(device: torch.device, dry: bool) -> Report:
    """Tensors on a GPU that is not the current one."""
    if dry or torch.cuda.device_count() < 2:
        return {"skipped": "needs two GPUs"}
    x = torch.randn(4096, device="cuda:1")
    y, bits = ops.activation_forward(x, "gelu", [])
    ops.activation_backward(y, y, bits, "gelu", [])
    if torch.cuda.current_device() != 0 or not torch.equal(y, torch.nn.functional.gelu(x)):
        raise BrokenPromiseError("wrong on the second GPU")
    return {"devices": torch.cuda.device_count()}


def no_synchronisation(device: torch.device, dry: bool) -> Report:
    """Once compiled, no call waits for the GPU."""
    if dry:
        return {"skipped": "needs a GPU"}
    x = torch.randn(64, 1000, device=device, requires_grad=True)
    optiacts.gelu(x).backward(x.detach())
    torch.cuda.set_sync_debug_mode("error")
    try:
        optiacts.gelu(x).backward(x.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"synchronises": False}
