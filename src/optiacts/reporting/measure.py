"""A real step on a CUDA GPU beside the prediction."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from optiacts.reporting.data import Measured
from optiacts.reporting.errors import ReportError
from optiacts.reporting.loss import scalar


def require_cuda() -> None:
    """``ReportError`` where there is no CUDA GPU."""
    if not torch.cuda.is_available():
        raise ReportError("--measure runs a real step and needs a CUDA GPU; there is none here. Leave --measure out")


def measure(
    stage: str,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> Measured:
    """One step of ``model``, whose tensors lie on the GPU with its inputs: forward, backward and ``optimizer``'s.

    A first step is run and forgotten: it allocates the optimizer's state and the libraries' workspaces.
    """
    _step(model, args, kwargs, optimizer)
    gc.collect()  # whose tensors would be counted before, and not after
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    after_forward = _step(model, args, kwargs, optimizer) - before
    torch.cuda.synchronize()
    return Measured(stage, after_forward, torch.cuda.max_memory_allocated())


def _step(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], optimizer: torch.optim.Optimizer | None
) -> int:
    """Runs it; the bytes allocated between forward and backward. The optimizer drops the gradients at its end."""
    loss = scalar(model(*args, **kwargs))
    allocated = torch.cuda.memory_allocated()
    loss.backward()
    del loss
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return allocated
