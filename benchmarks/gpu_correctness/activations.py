"""Activations: the forward bit by bit, the decode, memory layouts, tensors beyond 2^31 elements, autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import optiacts
from optiacts import ops
from optiacts.accuracy import errors_against_floors
from optiacts.backends import eager
from optiacts.backends import triton as backend
from optiacts.curves import Curve, unimodal
from optiacts.decoders.inverse import derivative_from_output
from optiacts.decoders.table import every_value
from optiacts.packing import pack

from .common import DTYPES, SIXTEEN_BIT, BrokenPromiseError, Report, same_output

GPU_SLACK = 1.3  # on the floors of the 16-bit decode
FLOAT32_FAR, FLOAT32_ANYWHERE = 2e-6, 1.2e-4


def forward_is_pytorchs(device: torch.device, dry: bool) -> Report:
    """Every 16-bit and every float32 input: our fused forward against PyTorch's op, bit by bit."""
    from optiacts.backends.triton import launch

    different: Report = {}
    for name, curve in unimodal().items():
        for dtype in DTYPES:
            wrong, first = 0, None
            for x in _inputs(dtype, device, dry):
                y = torch.empty_like(x)
                bits = launch.forward(x, y, curve)
                if not torch.equal(bits, pack(x < curve.threshold(dtype))):
                    raise BrokenPromiseError(f"{name} {dtype}: side bits differ")
                unequal = (_pattern(y) != _pattern(curve.forward(x))) & ~(y.isnan() & x.isnan())
                if unequal.any():
                    wrong += int(unequal.sum())
                    first = first or float(x[unequal][0])
            if wrong:
                different[f"{name} {dtype}"] = {"inputs": wrong, "for example": first}
    in_effect = {
        f"{name} {dtype}"
        for name, curve in unimodal().items()
        for dtype in DTYPES
        if launch.fused(curve, dtype, device)
    }
    report = {
        "fused": sorted(in_effect),
        "different": different,
    }
    if in_effect & set(different) and not dry:  # the interpreter's functions are numpy's
        raise BrokenPromiseError(report)
    return report


def forward_is_exact(device: torch.device, dry: bool) -> Report:
    """Every finite 16-bit input: our fused forward against float64 mathematics.

    The error is given as a multiple of what is due: two units in the last place of y and one of x (QuickGELU
    rounds three times, once before its sigmoid), and what float32 arithmetic loses where 1 + erf or 1 + tanh
    cancels in the left tail.
    """
    from optiacts.backends.triton import launch

    report: Report = {}
    for name, curve in unimodal().items():
        for dtype in SIXTEEN_BIT:
            x = every_value(dtype)
            x = x[x.isfinite()].to(device)
            y = torch.empty_like(x)
            launch.forward(x, y, curve)
            exact = curve.function(x.double(), torch)
            eps, slope = torch.finfo(dtype).eps, curve.derivative(x.double(), torch)
            due = eps * (2 * exact.abs() + (x * slope).abs()) + 2e-7 * x.double().abs().clamp(max=10)
            tiny = torch.finfo(dtype).smallest_normal
            due = due.clamp(min=2 * tiny if dry else tiny * eps)  # the interpreter garbles subnormal bfloat16
            report[f"{name} {dtype}"] = float(((y.double() - exact).abs() / due).max())
    if not all(ratio <= 1 for ratio in report.values()):
        raise BrokenPromiseError(report)
    return report


def decode_16_bit(device: torch.device, dry: bool) -> Report:
    """Every finite 16-bit input: worst and RMS error of the decode as multiples of the floors."""
    report: Report = {}
    for name, curve in unimodal().items():
        for dtype in SIXTEEN_BIT:
            x = every_value(dtype)
            x = x[x.isfinite()].to(device)
            y = curve.forward(x)
            decoded = _decode(y, pack(x < curve.threshold(dtype)), curve)
            e = errors_against_floors(curve, x.cpu(), y.cpu(), decoded.cpu())
            report[f"{name} {dtype}"] = {"worst": e.worst / e.worst_floor, "rms": e.rms / e.rms_floor}
    if not all(ratio <= GPU_SLACK for ratios in report.values() for ratio in ratios.values()):
        raise BrokenPromiseError(report)
    return report


def decode_float32(device: torch.device, dry: bool) -> Report:
    """float32: largest error against exact inversion away from the minimum, and against f'(x) anywhere.

    The latter of ``rounded`` outputs, those of the mathematics, and of PyTorch's own. Of these, exact inversion alone
    errs by ``lost``, which depends on the device: near the minimum f' hangs on the last bits of y.
    """
    report: Report = {}
    for name, curve in unimodal().items():
        near = torch.linspace(curve.x_min - 2e-3, curve.x_min + 2e-3, 4_001 if dry else 200_001)
        x = torch.cat([torch.linspace(-15, 15, 4_001 if dry else 2_000_001), near]).to(device)
        y, left, truth = curve.forward(x), x < curve.threshold(x.dtype), curve.derivative(x.double(), torch)
        rounded = curve.function(x.double(), torch).float()
        decoded = _decode(y, pack(left), curve).double()
        exact = derivative_from_output(curve, y.double(), left)
        far = (x.double() - curve.x_min).abs() > 0.1
        report[name] = {
            "far": float((decoded - exact).abs()[far].max()),
            "anywhere": float((decoded - truth).abs().max()),
            "lost": float((exact - truth).abs().max()),
            "rounded": float((_decode(rounded, pack(left), curve).double() - truth).abs().max()),
        }
        due = {"far": FLOAT32_FAR, "rounded": FLOAT32_ANYWHERE}
        due["anywhere"] = max(FLOAT32_ANYWHERE, report[name]["lost"])
        if not all(report[name][key] <= most for key, most in due.items()):
            raise BrokenPromiseError(report)
    return report


def layouts(device: torch.device, dry: bool) -> Report:
    """Shapes whose rows end within a byte, scalars, empty, unaligned, strided and channels_last tensors, in place."""
    base = torch.randn(100_000, device=device)
    cases = {
        "scalar": base[0],
        "empty": base[:0].reshape(0, 5),
        "one column": base[:9].reshape(9, 1),
        "odd rows": base[: 7 * 131].reshape(7, 131),
        "whole bytes": base[: 3 * 40].reshape(3, 40),
        "several programs": base[:16_384].reshape(8, 2048),
        "unaligned": base[1 : 1 + 4096].reshape(4, 1024),
        "strided": base[: 64 * 64].reshape(64, 64)[:, ::2],
        "transposed": base[: 64 * 96].reshape(64, 96).t(),
        "expanded": base[:64].expand(8, 64),
        "channels_last": base[: 2 * 16 * 64].reshape(2, 16, 8, 8).to(memory_format=torch.channels_last),
    }
    for label, values in cases.items():
        for dtype in DTYPES:
            x = values.to(dtype)
            for name in ["gelu"] if dry else list(unimodal()):
                _same_as_eager(x, name, label)
    return {"cases": list(cases), "dtypes": [str(dtype) for dtype in DTYPES]}


def _same_as_eager(x: Tensor, name: str, label: str) -> None:
    curve, grad = unimodal()[name], torch.randn_like(x)
    expected_y, expected_bits = eager.activation_forward(x, curve, [])
    y, bits = backend.activation_forward(x, curve, [])
    product = backend.activation_backward(grad, expected_y, bits, curve).float()
    if not torch.equal(bits, expected_bits):
        raise BrokenPromiseError(f"{name} {x.dtype} {label}: bits")
    if y.stride() != torch.empty_like(x).stride() or not same_output(y, expected_y, 2):
        raise BrokenPromiseError(f"{name} {x.dtype} {label}: output")
    # where f' is steep in y, near the minimum, the two decoders may differ by the floors of the 16-bit dtypes
    slack = {torch.bfloat16: 0.02, torch.float16: 0.008, torch.float32: 2e-5}[x.dtype]
    expected = eager.activation_backward(grad.float(), expected_y.float(), bits, curve)
    if x.dtype != torch.float32:
        expected = eager.activation_backward(grad, expected_y, bits, curve).float()
    if product.numel() and ((product - expected).abs() > slack * grad.float().abs() + slack / 10).any():
        raise BrokenPromiseError(f"{name} {x.dtype} {label}: gradient")
    if label != "expanded":
        changed = x.clone(memory_format=torch.preserve_format)
        if not torch.equal(backend.activation_forward_(changed, curve, []), bits) or not torch.equal(changed, y):
            raise BrokenPromiseError(f"{name} {x.dtype} {label}: in place")


def beyond_32_bits(device: torch.device, dry: bool) -> Report:
    """A tensor of more than 2^31 elements: its last part is as if it stood alone."""
    tail = 1 << 12
    n = (1 << 16 if dry else 1 << 31) + tail
    if not dry and torch.cuda.mem_get_info(device)[0] < 9 * n:
        return {"skipped": f"needs {9 * n / 2**30:.0f} GiB of free memory"}
    shapes = {"flat": (n,), "odd rows": (n // 4097, 4097)}
    for label, shape in shapes.items():
        x = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_()
        y, bits = ops.activation_forward(x, "gelu", [])
        rows = slice(-tail, None) if label == "flat" else slice(-2, None)
        expected_y, expected_bits = ops.activation_forward(x[rows].clone(), "gelu", [])
        byte_rows = slice(-tail // 8, None) if label == "flat" else rows
        if not torch.equal(y[rows], expected_y) or not torch.equal(bits[byte_rows], expected_bits):
            raise BrokenPromiseError(f"{label}: forward")
        del x
        grad = ops.activation_backward(y, y, bits, "gelu", [])
        if not torch.equal(grad[rows], ops.activation_backward(expected_y, expected_y, expected_bits, "gelu", [])):
            raise BrokenPromiseError(f"{label}: backward")
        del y, bits, grad
    return {"elements": n}


def autograd(device: torch.device, dry: bool) -> Report:
    """optiacts.gelu and its sisters on a device tensor, against float64 derivatives, through autograd."""
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": optiacts.gelu,
        "gelu_tanh": functools.partial(optiacts.gelu, approximate="tanh"),
        "silu": optiacts.silu,
        "mish": optiacts.mish,
        "quick_gelu": optiacts.quick_gelu,
    }
    worst: Report = {}
    for name, call in calls.items():
        x = torch.linspace(-6, 6, 4096, device=device).requires_grad_()
        (grad,) = torch.autograd.grad(call(x).sum(), x)
        far = (x.detach().double() - unimodal()[name].x_min).abs() > 0.1
        error = (grad.double() - unimodal()[name].derivative(x.detach().double(), torch)).abs()[far]
        worst[name] = float(error.max())
    if not all(error <= 1e-5 for error in worst.values()):
        raise BrokenPromiseError(worst)
    return worst


def _inputs(dtype: torch.dtype, device: torch.device, dry: bool) -> Iterator[Tensor]:
    """All values of ``dtype`` in parts; in a dry run every 65,521-st of the float32 ones."""
    if dtype != torch.float32:
        yield every_value(dtype).to(device)
    elif dry:
        yield torch.arange(-(2**31), 2**31, 65_521).to(torch.int32).view(torch.float32)[: 1 << 16]
    else:
        size = 1 << 26
        for start in range(-(2**31), 2**31, size):
            yield torch.arange(start, start + size, device=device).to(torch.int32).view(torch.float32)


def _pattern(y: Tensor) -> Tensor:
    return y.view(torch.int16 if y.element_size() == 2 else torch.int32)


def _decode(y: Tensor, bits: Tensor, curve: Curve) -> Tensor:
    """f' in float32, not rounded to the dtype of ``y``: the backward kernel with a float32 result."""
    from optiacts.backends.triton import launch

    decoded = torch.empty(y.shape, dtype=torch.float32, device=y.device)
    launch.backward(torch.ones_like(y), y, bits, decoded, curve)
    return decoded
