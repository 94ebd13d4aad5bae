"""Curves in closed form: every 16-bit output decoded, and gated products, against floors and the eager backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optiacts.accuracy import errors_against_floors
from optiacts.backends import eager
from optiacts.backends import triton as backend
from optiacts.curves import ClosedForm, Curve, every_name, get
from optiacts.decoders.table import every_value, normal_mass, told

from .common import DTYPES, SIXTEEN_BIT, BrokenPromiseError, Report, same_output

GPU_SLACK = 1.3  # on the RMS floor of the 16-bit decode
ROUNDING = 0.212  # the RMS of a rounding in units of eps and of the number, over mantissas as products have them
GATES = ("relu", "sigmoid", "tanh")  # of which PyTorch keeps the output, so that they are no activations of ours


def closed_forms(device: torch.device, dry: bool) -> Report:
    """The decode of those without a backward of PyTorch's; gated products of all."""
    report: Report = {}
    served = [curve for curve in map(get, (*every_name(), *GATES)) if isinstance(curve.decoder, ClosedForm)]
    for number, curve in enumerate(c for c in served if backend.serves(c, torch.float32)):
        decodes = isinstance(curve.decoder, ClosedForm) and curve.decoder.backward is None
        for dtype in SIXTEEN_BIT if decodes else ():
            report[f"{curve.name} {dtype}"] = _decoded(curve, dtype, device)
        # in a dry run each in one dtype
        for dtype in (DTYPES[number % len(DTYPES) :][:1] if dry else DTYPES) if curve.gates else ():
            _gated(curve, dtype, device)
    if not all(ratio <= GPU_SLACK for ratio in report.values()):
        raise BrokenPromiseError(report)
    return report


def _decoded(curve: Curve, dtype: torch.dtype, device: torch.device) -> float:
    """The RMS error over the floor, each with the rounding that the gradient gets in any case."""
    from optiacts.backends.triton import launch

    x = told(curve, every_value(dtype)).to(device)
    y, bits = backend.activation_forward(x, curve, ())
    decoded = torch.empty(y.shape, dtype=torch.float32, device=device)
    launch.backward(torch.ones_like(y), y, bits, decoded, curve)
    errors = errors_against_floors(curve, x.cpu(), y.cpu(), decoded.cpu())
    near = x.cpu()[x.cpu().abs() < 100]
    slope, mass = curve.derivative(near.double(), torch), normal_mass(near)
    rounding = ROUNDING * torch.finfo(dtype).eps * float(((slope**2 * mass).sum() / mass.sum()).sqrt())
    return math.hypot(errors.rms, rounding) / math.hypot(errors.rms_floor, rounding)


def _gated(curve: Curve, dtype: torch.dtype, device: torch.device) -> None:
    """Slot and bits to the bit, gradients within the rounding of the dtype."""
    wide = (2 * torch.randn(48, 2 * 160, device=device)).to(dtype)
    wide[0, :8] = torch.tensor([0.0, -0.0, 6.0, -6.0, 0.5, -0.5, 1e-6, -20.0])
    wide[1, 160:168] = 0
    for label, (gate, up) in {
        "halves": wide.chunk(2, dim=-1),
        "odd halves": wide[:9, :262].contiguous().chunk(2, dim=-1),
        "bytes": (wide[:9, :40].contiguous(), wide[:9, 160:200].contiguous()),
    }.items():
        what = f"{curve.name} {dtype} {label}"
        ours, theirs = backend.gated_forward(gate, up, curve), eager.gated_forward(gate, up, curve)
        same = all(same_output(a, b, 4) for a, b in zip(ours[:2], theirs[:2], strict=True))
        if not same or not torch.equal(ours[2], theirs[2]):
            raise BrokenPromiseError(f"{what}: h, slot or bits")
        grad = torch.randn(gate.shape, device=device).to(dtype)
        got, due = (_gradients(b, grad, saved, curve) for b, saved in ((backend, ours), (eager, theirs)))
        for name, a, b in zip(("gate", "up"), got, due, strict=True):
            # the interpreter truncates to bfloat16; where the slope is steep, tables know the mean of an interval
            slack = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
            error = float((a.double() - b.double()).norm() / b.double().norm())
            if not error <= slack:
                raise BrokenPromiseError(f"{what}: gradient of {name} differs by {error:.1e}")


def _gradients(module: object, grad: Tensor, saved: tuple[Tensor, ...], curve: Curve) -> list[Tensor]:
    found = [torch.empty_like(grad) for _ in range(2)]
    module.gated_backward(grad, *saved, curve, *found)  # type: ignore[attr-defined]
    return found
