"""Curves in closed form: every 16-bit output decoded, and gated products, against floors and the eager backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from optiacts.accuracy import errors_against_floors
from optiacts.backends import eager
from optiacts.backends import triton as backend
from optiacts.backends.triton import launch
from optiacts.curves import ClosedForm, Curve, every_name, get
from optiacts.decoders.table import every_value, normal_mass, told

from .common import DEVICE, DTYPES, INTERPRETED, SIXTEEN_BIT, Record, named, same_output

GPU_SLACK = 1.3  # on the RMS floor of the 16-bit decode
ROUNDING = 0.212  # the RMS of a rounding in units of eps and of the number, over mantissas as products have them
GATES = ("relu", "sigmoid", "tanh")  # of which PyTorch keeps the output, so that they are no activations of ours

SERVED = [
    curve
    for curve in map(get, (*every_name(), *GATES))
    if isinstance(curve.decoder, ClosedForm) and backend.serves(curve, torch.float32)
]
DECODED = [curve for curve in SERVED if isinstance(curve.decoder, ClosedForm) and curve.decoder.backward is None]
GATED = [
    (curve, dtype)
    for number, curve in enumerate(SERVED)
    if curve.gates
    for dtype in (DTYPES[number % len(DTYPES) :][:1] if INTERPRETED else DTYPES)  # in the interpreter each in one
]


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, **named)
@pytest.mark.parametrize("curve", DECODED, **named)
def test_decode(curve: Curve, dtype: torch.dtype, record_property: Record) -> None:
    """The RMS error over the floor, each with the rounding that the gradient gets in any case."""
    x = told(curve, every_value(dtype)).to(DEVICE)
    y, bits = backend.activation_forward(x, curve, ())
    decoded = torch.empty(y.shape, dtype=torch.float32, device=DEVICE)
    launch.backward(torch.ones_like(y), y, bits, decoded, curve)
    errors = errors_against_floors(curve, x.cpu(), y.cpu(), decoded.cpu())
    near = x.cpu()[x.cpu().abs() < 100]
    slope, mass = curve.derivative(near.double(), torch), normal_mass(near)
    rounding = ROUNDING * torch.finfo(dtype).eps * float(((slope**2 * mass).sum() / mass.sum()).sqrt())
    ratio = math.hypot(errors.rms, rounding) / math.hypot(errors.rms_floor, rounding)
    record_property("rms", ratio)
    assert ratio <= GPU_SLACK


@pytest.mark.parametrize(("curve", "dtype"), GATED, **named)
def test_gated(curve: Curve, dtype: torch.dtype) -> None:
    """Slot and bits to the bit, gradients within the rounding of the dtype."""
    wide = (2 * torch.randn(48, 2 * 160, device=DEVICE)).to(dtype)
    wide[0, :8] = torch.tensor([0.0, -0.0, 6.0, -6.0, 0.5, -0.5, 1e-6, -20.0])
    wide[1, 160:168] = 0
    for label, (gate, up) in {
        "halves": wide.chunk(2, dim=-1),
        "odd halves": wide[:9, :262].contiguous().chunk(2, dim=-1),
        "bytes": (wide[:9, :40].contiguous(), wide[:9, 160:200].contiguous()),
    }.items():
        ours, theirs = backend.gated_forward(gate, up, curve), eager.gated_forward(gate, up, curve)
        for what, a, b in zip(("h", "slot"), ours, theirs, strict=False):
            assert same_output(a, b, 4), (label, what)
        assert torch.equal(ours[2], theirs[2]), label
        grad = torch.randn(gate.shape, device=DEVICE).to(dtype)
        got, due = (_gradients(b, grad, saved, curve) for b, saved in ((backend, ours), (eager, theirs)))
        for what, a, b in zip(("gate", "up"), got, due, strict=True):
            # the interpreter truncates to bfloat16; where the slope is steep, tables know the mean of an interval
            slack = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
            error = float((a.double() - b.double()).norm() / b.double().norm())
            assert error <= slack, (label, what)


def _gradients(module: object, grad: Tensor, saved: tuple[Tensor, ...], curve: Curve) -> list[Tensor]:
    found = [torch.empty_like(grad) for _ in range(2)]
    module.gated_backward(grad, *saved, curve, *found)  # type: ignore[attr-defined]
    return found
