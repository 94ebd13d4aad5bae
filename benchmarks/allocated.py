"""What a real training step allocates: on a CPU as PyTorch's profiler records it, on CUDA as its allocator counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from optiacts.held.garbage import without_collection

_FORWARD_ENDS = "the forward ends here"


def on_cpu(forward: Callable[[], Tensor], rest: Callable[[Tensor], None]) -> tuple[int, int]:
    """Bytes on top of what was there before: after ``forward``, and the most at any moment of it and ``rest``."""
    with without_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss = forward()
        with record_function(_FORWARD_ENDS):
            pass
        rest(loss)
        del loss
    level = held = highest = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == _FORWARD_ENDS:
            held = level
        elif event.name() == "[memory]":
            level += event.nbytes()
            highest = max(highest, level)
    return held, highest


def on_cuda(forward: Callable[[], Tensor], rest: Callable[[Tensor], None]) -> tuple[int, int]:
    """The same on the current CUDA device."""
    with without_collection():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = forward()
        held = torch.cuda.memory_allocated() - before
        rest(loss)
        torch.cuda.synchronize()
    return held, torch.cuda.max_memory_allocated() - before
