"""A converted model in every way that it may be run."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts

from .common import BrokenPromiseError, Report

_COMPILED_WORLDS = (
    (("bfloat16", None), "default"),
    (("bfloat16", None), "reduce-overhead"),
    (("float32", torch.bfloat16), "default"),
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


def conversion(device: torch.device, dry: bool) -> Report:
    """A converted model, alone, under autocast, compiled and replayed as a CUDA graph: its output is the same to the
    bit (compiled: nearly), its gradients are as good as PyTorch's, and it holds less."""
    if dry:
        return {"skipped": "needs a GPU"}
    torch.manual_seed(0)
    exact = Block().to(device).double()
    x = torch.randn(4096, 256, device=device)
    _loss(exact(x.double())).backward()
    truth = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    report: Report = {}
    worlds = [("float32", None), ("bfloat16", None), ("float32", torch.bfloat16), ("float32", torch.float16)]
    for (dtype, autocast), mode in [*((world, None) for world in worlds), *_COMPILED_WORLDS]:
        label = f"{dtype}{f', autocast {autocast}' if autocast else ''}{f', compiled ({mode})' if mode else ''}"
        found = {}
        for who in ("torch", "optiacts"):
            model = copy.deepcopy(exact).to(getattr(torch, dtype))
            if who == "optiacts":
                optiacts.convert(model)
            torch.compiler.reset()
            run = torch.compile(model, mode=mode, fullgraph=True) if mode else model
            found[who] = _trained(run, model, x.to(getattr(torch, dtype)), autocast)
        (y, grads, held), (our_y, our_grads, our_held) = found["torch"], found["optiacts"]
        error, our_error = (float((g.double() - truth).norm() / truth.norm()) for g in (grads, our_grads))
        report[label] = {
            "equal": torch.equal(y, our_y),
            "error": our_error,
            "PyTorch's": error,
            "held / PyTorch's": our_held / held if mode != "reduce-overhead" else None,  # graphs have their own pool
        }
        if (
            not (torch.equal(y, our_y) if mode is None else torch.allclose(y, our_y, rtol=0.02, atol=0.02))
            or our_error > 1.1 * error + 1e-6
            or (mode != "reduce-overhead" and our_held > 0.9 * held)
        ):
            raise BrokenPromiseError(report)
    return report


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
