"""The first-use proof, of every kind of kernel: what it found on this device, and that nothing waits afterwards."""

from __future__ import annotations

import torch

from optiacts import backends, curves
from optiacts.backends import eager, selection, triton
from optiacts.backends.all_kinds import prove_all

from .common import BrokenPromiseError, Report


def first_use_proof(device: torch.device, dry: bool) -> Report:
    """How many kinds of kernels were compared with plain PyTorch operations, and which do not serve."""
    if dry:
        return {"skipped": "needs a GPU; tests/test_proof_triton.py goes through the interpreter"}
    prove_all(device)
    wrong = {result.what: result.wrong for result in selection.found.values() if result.wrong}
    unfused = [name for name, curve in curves.unimodal().items() if not _fused(name, device) and curve.triton]
    report: Report = {"compared": len(selection.found), "do not serve": wrong, "forwards left to PyTorch": unfused}
    x = torch.randn(3, 7, device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = backends.select(x, curves.get("gelu"))  # chosen already: no second comparison
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        x.add_(1)
        selection.forget()
        captured = backends.select(x, curves.get("gelu"))
    report["in a capture"] = captured.name
    if wrong or again is not triton or captured is not eager or selection.found:
        raise BrokenPromiseError(report)
    return report


def _fused(name: str, device: torch.device) -> bool:
    from optiacts.backends.triton import launch

    return all(launch.fused(curves.get(name), dtype, device) for dtype in triton.dtypes)
