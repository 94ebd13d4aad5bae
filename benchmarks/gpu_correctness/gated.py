"""Gated products against the eager backend and float64 mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts.backends import eager
from optiacts.backends import triton as backend
from optiacts.curves import Curve, unimodal

from .common import DTYPES, BrokenPromiseError, Report, same_output


def gated(device: torch.device, dry: bool) -> Report:
    """h = act(gate) * up: separate tensors, halves, odd rows, zeros, overflow, NaN, against eager and float64."""
    report: Report = {}
    for dtype in DTYPES:
        corners = torch.tensor(
            [0.0, -0.0, 1e-30, -1e-6, 0.5, -0.75, -40, 300, 6e4, 3e38, -3e38, torch.inf, torch.nan]
        )
        gates = corners[corners.isnan() | (corners.abs() < 1e5)]  # PyTorch's own GELU differs by device beyond
        grid = torch.cartesian_prod(gates, corners).to(device).to(dtype)
        wide = torch.randn(48, 2 * 160, device=device).to(dtype)
        cases = {
            "corners": (grid[:, 0].contiguous(), grid[:, 1].contiguous()),
            "one element": (wide[0, 0], wide[0, 1]),
            "halves": wide.chunk(2, dim=-1),
            "halves of three dimensions": wide.unflatten(0, (6, 8)).chunk(2, dim=-1),
            "odd halves": wide[:9, :262].contiguous().chunk(2, dim=-1),
            "bytes": wide[:9, :80].contiguous().chunk(2, dim=-1),
            "transposed": (wide[:, :40].t(), wide[:, 40:80].t()),
        }
        for name in ["gelu", "silu"] if dry else list(unimodal()):
            for label, (gate, up) in cases.items():
                error = _gated_error(gate, up, unimodal()[name], label)
                if gate.numel() > 1:  # of a single one it says little
                    report[f"{name} {dtype}"] = max(report.get(f"{name} {dtype}", 0.0), error)
    # 1.5 times what PyTorch's own 16-bit gradients err by; the interpreter truncates to bfloat16, twice the error
    due = {"torch.bfloat16": 1e-2 if dry else 5e-3, "torch.float16": 6e-4, "torch.float32": 1e-6}
    if not all(error <= due[key.split()[1]] for key, error in report.items()):
        raise BrokenPromiseError(report)
    return report


def _gated_error(gate: Tensor, up: Tensor, curve: Curve, label: str) -> float:
    """The larger relative error, in the Euclidean norm, of the two gradients against float64; 0 for ``corners``."""
    what = f"{curve.name} {gate.dtype} {label}"
    h, slot, bits = backend.gated_forward(gate, up, curve)
    expected_h, expected_slot, expected_bits = eager.gated_forward(gate, up, curve)
    if not same_output(h, expected_h, 4):
        raise BrokenPromiseError(f"{what}: h")
    # whether h is a normal number may hang on the last bit of s: at the corners only what comes back counts
    if label != "corners" and not (same_output(slot, expected_slot, 4) and torch.equal(bits, expected_bits)):
        raise BrokenPromiseError(f"{what}: slot or bits")
    grad = torch.ones_like(h) if label == "corners" else torch.randn(h.shape, device=h.device).to(h.dtype)
    halves = h.new_empty((*h.shape[:-1], 2 * h.shape[-1])).chunk(2, dim=-1) if h.ndim else (h.clone(), h.clone())
    backend.gated_backward(grad, h, slot, bits, curve, halves[0], halves[1])
    if label == "corners":
        _gated_corners(what, (h, slot, bits), up, curve, halves)
        return 0.0
    x, u, g = gate.double(), up.double(), grad.double()
    exact = (g * u * curve.derivative(x, torch), g * curve.function(x, torch))
    return max(
        float((found.double() - truth).norm() / truth.norm()) for found, truth in zip(halves, exact, strict=True)
    )


def _gated_corners(what: str, saved: tuple[Tensor, ...], up: Tensor, curve: Curve, found: tuple[Tensor, ...]) -> None:
    """The gradients of ``found`` are those that eager finds in what was saved, infinities and NaN included."""
    h, slot, bits = saved
    expected = (torch.empty_like(h), torch.empty_like(h))
    eager.gated_backward(torch.ones_like(h), h, slot, bits, curve, *expected)
    factor = up.float().abs().nan_to_num(0, 0, 0)  # the decode's error is an absolute one, which up multiplies
    for ours, theirs, more in zip(found, expected, (factor, torch.zeros_like(factor)), strict=True):
        differs = (ours.float() - theirs.float()) / (theirs.float().abs().clamp(min=1) + more)
        if not torch.equal(ours.isnan(), theirs.isnan()) or differs.nan_to_num(0, 0, 0).abs().max() > 0.03:
            raise BrokenPromiseError(f"{what}: gradients")
