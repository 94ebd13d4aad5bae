"""Gated products against the eager backend and float64 mathematics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optiacts.backends import eager
from optiacts.backends import triton as backend
from optiacts.curves import Curve

from .common import CURVES, DEVICE, DTYPES, INTERPRETED, Record, named, same_output

GATES = [curve for curve in CURVES if not INTERPRETED or curve.name in ("gelu", "silu")]
# 1.5 times what PyTorch's own 16-bit gradients err by; the interpreter truncates to bfloat16, twice the error
MOST = {torch.bfloat16: 1e-2 if INTERPRETED else 5e-3, torch.float16: 6e-4, torch.float32: 1e-6}
SHAPES: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "one element": lambda wide: (wide[0, 0], wide[0, 1]),
    "halves": lambda wide: wide.chunk(2, dim=-1),
    "halves of three dimensions": lambda wide: wide.unflatten(0, (6, 8)).chunk(2, dim=-1),
    "odd halves": lambda wide: wide[:9, :262].contiguous().chunk(2, dim=-1),
    "bytes": lambda wide: wide[:9, :80].contiguous().chunk(2, dim=-1),
    "transposed": lambda wide: (wide[:, :40].t(), wide[:, 40:80].t()),
}


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("curve", GATES, **named)
@pytest.mark.parametrize("label", SHAPES)
def test_gated(label: str, curve: Curve, dtype: torch.dtype, record_property: Record) -> None:
    """h = act(gate) * up: separate tensors, halves, odd rows, of gradients the relative error against float64."""
    gate, up = SHAPES[label](torch.randn(48, 2 * 160, device=DEVICE).to(dtype))
    saved = backend.gated_forward(gate, up, curve)
    expected = eager.gated_forward(gate, up, curve)
    for what, ours, theirs in zip(("h", "slot"), saved, expected, strict=False):
        assert same_output(ours, theirs, 4), what
    assert torch.equal(saved[2], expected[2])
    grad = torch.randn(gate.shape, device=DEVICE).to(dtype)
    halves = _halves(gate)
    backend.gated_backward(grad, *saved, curve, *halves)
    if gate.numel() == 1:
        return  # of a single one the error says little
    x, u, g = gate.double(), up.double(), grad.double()
    exact = (g * u * curve.derivative(x, torch), g * curve.function(x, torch))
    error = max(
        float((found.double() - truth).norm() / truth.norm()) for found, truth in zip(halves, exact, strict=True)
    )
    record_property("error", error)
    assert error <= MOST[dtype]


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("curve", GATES, **named)
def test_corners(curve: Curve, dtype: torch.dtype) -> None:
    """Zeros, overflow, NaN: h, and the gradients that eager finds in what was saved, infinities and NaN included.

    Whether h is a normal number may hang on the last bit of s: slot and bits need not be eager's.
    """
    corners = torch.tensor([0.0, -0.0, 1e-30, -1e-6, 0.5, -0.75, -40, 300, 6e4, 3e38, -3e38, torch.inf, torch.nan])
    gates = corners[corners.isnan() | (corners.abs() < 1e5)]  # PyTorch's own GELU differs by device beyond
    grid = torch.cartesian_prod(gates, corners).to(DEVICE).to(dtype)
    gate, up = grid[:, 0].contiguous(), grid[:, 1].contiguous()
    h, slot, bits = backend.gated_forward(gate, up, curve)
    assert same_output(h, eager.gated_forward(gate, up, curve)[0], 4)
    halves, expected = _halves(gate), _halves(gate)
    for module, found in ((backend, halves), (eager, expected)):
        module.gated_backward(torch.ones_like(h), h, slot, bits, curve, *found)
    factor = up.float().abs().nan_to_num(0, 0, 0)  # the decode's error is an absolute one, which up multiplies
    for ours, theirs, more in zip(halves, expected, (factor, torch.zeros_like(factor)), strict=True):
        differs = (ours.float() - theirs.float()) / (theirs.float().abs().clamp(min=1) + more)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert differs.nan_to_num(0, 0, 0).abs().max() <= 0.03


def _halves(like: Tensor) -> tuple[Tensor, ...]:
    """Where gradients go: the halves of longer rows."""
    if not like.ndim:
        return torch.empty_like(like), torch.empty_like(like)
    return like.new_empty((*like.shape[:-1], 2 * like.shape[-1])).chunk(2, dim=-1)
