"""The first use: every kind of kernel is compared with plain PyTorch operations, and nothing waits afterwards."""

from __future__ import annotations

import torch

from optiacts import backends, curves
from optiacts.backends import eager, selection, triton
from optiacts.backends.all_kinds import prove_all
from optiacts.backends.triton import launch

from .common import CURVES, DEVICE, DTYPES, Record, needs_gpu

pytestmark = needs_gpu  # tests/test_proof_triton.py goes through the interpreter


def test_every_kernel_proves_itself(record_property: Record) -> None:
    prove_all(DEVICE)
    unfused = [c.name for c in CURVES if c.triton and not all(launch.fused(c, dtype, DEVICE) for dtype in DTYPES)]
    record_property("kinds compared", len(selection.found))
    record_property("forwards left to PyTorch", ", ".join(unfused) or "none")
    assert {result.what: result.wrong for result in selection.found.values() if result.wrong} == {}


def test_a_second_use_waits_for_nothing() -> None:
    x, gelu = torch.randn(3, 7, device=DEVICE), curves.get("gelu")
    backends.select(x, gelu)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert backends.select(x, gelu) is triton
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_a_first_use_in_a_capture_is_eager_and_not_remembered() -> None:
    x, gelu = torch.randn(3, 7, device=DEVICE), curves.get("gelu")
    selection.forget()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        x.add_(1)
        captured = backends.select(x, gelu)
    assert captured is eager and not selection.found
