"""Dropout: the kernels, and PyTorch's own numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

import optiacts
from optiacts.backends import eager
from optiacts.backends import triton as backend
from optiacts.curves import unimodal
from optiacts.packing import pack

from .common import DTYPES, BrokenPromiseError, Report, relative


def dropout_kernels(device: torch.device, dry: bool) -> Report:
    """The kernels of dropout against the eager backend: exact masks, and gradients behind a dropout."""
    worst: Report = {}
    for shape in ((3, 17), (64, 96), (40, 250)) if dry else ((3, 17), (64, 96), (40, 250), (512, 4096)):
        for dtype in DTYPES:
            label = f"{tuple(shape)} {dtype}"
            x, up, grad = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
            kept, scale = torch.rand(shape, device=device) < 0.9, 1 / 0.9
            bits = backend.pack_dropped(kept)
            if not torch.equal(bits, pack(~kept)):
                raise BrokenPromiseError(f"{label}: bits of what was dropped differ")
            if not torch.equal(backend.scale_kept(x, bits, 2.0), torch.where(kept, 2 * x, 0 * x)):
                raise BrokenPromiseError(f"{label}: scale_kept differs")
            for name in ("gelu", "silu"):
                curve, eps = unimodal()[name], torch.finfo(dtype).eps
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
                    if bool((ours[~kept] != 0).any()):
                        raise BrokenPromiseError(f"{label} {name} {what}: a gradient where it was dropped")
                    key = f"{what} {dtype}"
                    worst[key] = max(worst.get(key, 0.0), relative(ours, exact) / eps)
    if not all(error <= (200 if "float32" in key else 4) for key, error in worst.items()):
        raise BrokenPromiseError(worst)
    return worst


def dropout_draws_as_pytorch(device: torch.device, dry: bool) -> Report:
    """On a GPU: PyTorch's bits and its generator's state, two masks for two dropouts, new ones at each replay."""
    if dry:
        return {"skipped": "needs a GPU"}
    x, up = (torch.randn(96, 1000, device=device, requires_grad=True) for _ in range(2))
    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "plain": (lambda: optiacts.dropout(x, 0.3), lambda: functional.dropout(x, 0.3)),
        "inplace": (
            lambda: optiacts.dropout(x * 1, 0.3, inplace=True),
            lambda: functional.dropout(x * 1, 0.3, inplace=True),
        ),
        "gelu": (
            lambda: optiacts.activation_dropout(x, "gelu", 0.3),
            lambda: functional.dropout(functional.gelu(x), 0.3),
        ),
        "relu": (
            lambda: optiacts.activation_dropout(x, "relu", 0.3),
            lambda: functional.dropout(functional.relu(x), 0.3),
        ),
        "silu gate": (
            lambda: optiacts.gated_dropout(x, up, "silu", 0.3),
            lambda: functional.dropout(functional.silu(x) * up, 0.3),
        ),
    }
    worst: Report = {}
    for name, (ours, theirs) in pairs.items():
        results = []
        for run in (ours, theirs):
            torch.cuda.manual_seed(7)
            y = run()
            (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
            results.append((y, grad, torch.cuda.get_rng_state()))
        (y, grad, state), (expected, due, wanted) = results
        if not torch.equal(y, expected) or not torch.equal(state, wanted):
            raise BrokenPromiseError(f"{name}: not PyTorch's numbers")
        worst[name] = relative(grad, due)
        if worst[name] > 1e-4 or torch.equal(ours(), ours()):
            raise BrokenPromiseError({name: worst[name]})
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x = x.detach().clone().requires_grad_()  # a leaf that autograd has not met on the legacy stream
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
        if bool((grad[y == 0] != 0).any()):
            raise BrokenPromiseError("a replay's backward has another mask than its forward")
        masks.append(y == 0)
    if torch.equal(*masks):
        raise BrokenPromiseError("a CUDA graph draws the same mask at each replay")
    return worst
