"""The checks of `make gpu-check`. Each returns what it measured, or raises ``BrokenPromiseError`` with it.

In a dry run they go through Triton's interpreter on a CPU, where elementary functions are numpy's: outputs then
only nearly equal PyTorch's, and what needs a GPU is skipped.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from optiacts import ops
from optiacts.accuracy import errors_against_floors
from optiacts.backends import eager, eager_norm, triton_norm
from optiacts.backends import triton as backend
from optiacts.curves import CURVES, Curve
from optiacts.decoders.inverse import derivative_from_output
from optiacts.decoders.table import every_value
from optiacts.norms import Norm, Saved
from optiacts.packing import pack

SIXTEEN_BIT = (torch.bfloat16, torch.float16)
DTYPES = (*SIXTEEN_BIT, torch.float32)
GPU_SLACK = 1.3  # on the floors of the 16-bit decode
FLOAT32_FAR, FLOAT32_ANYWHERE = 2e-6, 1.2e-4
Report = dict[str, Any]


class BrokenPromiseError(Exception):
    """A promise is broken; the argument is what was measured."""


def forward_is_pytorchs(device: torch.device, dry: bool) -> Report:
    """Every 16-bit and every float32 input: our fused forward against PyTorch's op, bit by bit."""
    from optiacts.backends.triton import launch

    different: Report = {}
    for name, curve in CURVES.items():
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
        f"{name} {dtype}" for name, curve in CURVES.items() for dtype in DTYPES if launch.fused(curve, dtype, device)
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
    for name, curve in CURVES.items():
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
    for name, curve in CURVES.items():
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
    for name, curve in CURVES.items():
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
            for name in ["gelu"] if dry else list(CURVES):
                _same_as_eager(x, name, label)
    return {"cases": list(cases), "dtypes": [str(dtype) for dtype in DTYPES]}


def _same_as_eager(x: Tensor, name: str, label: str) -> None:
    curve, grad = CURVES[name], torch.randn_like(x)
    expected_y, expected_bits = eager.activation_forward(x, curve, [])
    y, bits = backend.activation_forward(x, curve, [])
    product = backend.activation_backward(grad, expected_y, bits, curve).float()
    if not torch.equal(bits, expected_bits):
        raise BrokenPromiseError(f"{name} {x.dtype} {label}: bits")
    if y.stride() != torch.empty_like(x).stride() or not _same_output(y, expected_y, 2):
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


def _same_output(ours: Tensor, pytorchs: Tensor, eps: int) -> bool:
    """Equal on a GPU; within ``eps`` in the interpreter, which truncates where a GPU rounds and has numpy's exp."""
    from optiacts.backends.triton.elementary import VENDOR

    dry = VENDOR == "interpreted"
    rtol, atol = (eps * torch.finfo(ours.dtype).eps, 1e-6) if dry else (0.0, 0.0)
    return torch.allclose(ours.float(), pytorchs.float(), rtol=rtol, atol=atol, equal_nan=True)


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
        for name in ["gelu", "silu"] if dry else list(CURVES):
            for label, (gate, up) in cases.items():
                error = _gated_error(gate, up, CURVES[name], label)
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
    if not _same_output(h, expected_h, 4):
        raise BrokenPromiseError(f"{what}: h")
    # whether h is a normal number may hang on the last bit of s: at the corners only what comes back counts
    if label != "corners" and not (_same_output(slot, expected_slot, 4) and torch.equal(bits, expected_bits)):
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


def norms(device: torch.device, dry: bool) -> Report:
    """The kernels of norms against the eager backend: relative errors of dx, dw and db in the Euclidean norm."""
    worst: Report = {}
    shapes = (
        [(37, 100), (5, 16), (3, 2, 768)] if dry else [(37, 100), (5, 16), (3, 2, 768), (4096, 4096), (70_000, 128)]
    )
    for dtype, centered, shape in itertools.product(DTYPES, (True, False), shapes):
        kind = Norm(centered, 1e-5, remainder=True)
        x = (2 + 3 * torch.randn(shape, device=device)).to(dtype)
        scale, shift = (torch.randn(shape[-1], device=device) * 0.2 + at for at in (1.0, 0.0))
        mean, rstd = kind.statistics(x)
        y = ((x.float() - mean) * rstd * scale + shift).to(dtype)
        expected = eager_norm.norm_statistics(x, y, scale, shift, kind)
        found = triton_norm.norm_statistics(x, y, scale, shift, kind)
        name = f"{'layer' if centered else 'rms'} {dtype}"
        bits = 0.0 if found[2] is None or expected[2] is None else float(found[2].ne(expected[2]).float().mean())
        errors = {"rstd": _relative(found[1], expected[1]), "bits": bits}
        columns = torch.tensor([3, 11], device=device)
        for output, rescued in ((True, None), (True, columns), (False, None)):
            needed = mean if centered and (rescued is not None or not output) else None
            columns_of = None if rescued is None else x.index_select(-1, rescued)
            kept, bits_of = y if output else x, expected[2] if output else None
            saved = Saved(kept, needed, rstd, scale, shift, rescued, columns_of, bits_of, centered, output)
            grad = torch.randn_like(x)
            due, got = (b.norm_backward(grad, saved, torch.float32) for b in (eager_norm, triton_norm))
            for label, ours, theirs in zip(("dx", "dw", "db"), got, due, strict=True):
                errors[label] = max(errors.get(label, 0.0), _relative(ours, theirs))
        worst[name] = {k: max(v, worst.get(name, {}).get(k, 0.0)) for k, v in errors.items()}
    if any(v > (0.01 if k == "bits" else 2e-6) for found in worst.values() for k, v in found.items()):
        raise BrokenPromiseError(worst)
    return worst


def _relative(ours: Tensor, due: Tensor) -> float:
    return float((ours.double() - due.double()).norm() / due.double().norm())


def norms_are_exact_or_an_error(device: torch.device, dry: bool) -> Report:
    """Dead weights seen and unseen, on a device that the host does not wait for."""
    if dry:
        return {"skipped": "needs a GPU"}
    report: Report = {}
    for dtype in DTYPES:
        module = optiacts.LayerNorm(1024, device=device, dtype=dtype)
        plain = nn.LayerNorm(1024, device=device, dtype=dtype)
        x = torch.randn(512, 1024, device=device).to(dtype).requires_grad_()
        for dead in (0, 5, 1024):
            for each in (module, plain):
                nn.init.constant_(each.weight, 1.0)
                with torch.no_grad():
                    each.weight[:dead] = 0
            y, grad = module(x), torch.randn_like(x)
            if not torch.equal(y, plain(x)):
                raise BrokenPromiseError(f"{dtype}, {dead} dead: output")
            ours = torch.autograd.grad(y, (x, module.weight), grad)
            theirs = torch.autograd.grad(plain(x), (x, plain.weight), grad)
            errors = [
                _relative(a, b) if float(b.abs().max()) else float(a.abs().max())
                for a, b in zip(ours, theirs, strict=True)
            ]
            report[f"{dtype}, {dead} dead"] = max(errors)
            if not max(errors) < {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype]:
                raise BrokenPromiseError(report)
        nn.init.ones_(module.weight)
        step = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        module(x).float().square().sum().backward()
        step.step()
        module.weight.data[3] = 0
        module(x).float().square().sum().backward()
        step.step()
        try:
            module(x)
        except optiacts.UnseenChangeError:
            optiacts.norm_weights_changed()
        else:
            raise BrokenPromiseError(f"{dtype}: an unseen change went unnoticed")
        torch.cuda.set_sync_debug_mode("error")
        try:
            module(x.detach().requires_grad_())
        except RuntimeError:
            pass  # the first look waits
        else:
            raise BrokenPromiseError("the first look did not wait: what did it see?")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        module(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            module(x).float().sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return report


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
        far = (x.detach().double() - CURVES[name].x_min).abs() > 0.1
        error = (grad.double() - CURVES[name].derivative(x.detach().double(), torch)).abs()[far]
        worst[name] = float(error.max())
    if not all(error <= 1e-5 for error in worst.values()):
        raise BrokenPromiseError(worst)
    return worst


def dropout_kernels(device: torch.device, dry: bool) -> Report:
    """The kernels of dropout against the eager backend: exact masks, and gradients behind a dropout."""
    worst: Report = {}
    for shape in ((3, 17), (64, 96), (40, 250)) if dry else ((3, 17), (64, 96), (40, 250), (512, 4096)):
        for dtype in DTYPES:
            label = f"{tuple(shape)} {dtype}"
            x, up, grad = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
            kept, scale = torch.rand(shape, device=device) < 0.9, 1 / 0.9
            bits = backend.pack_dropped(kept)
            if not torch.equal(bits, pack(~kept)):
                raise BrokenPromiseError(f"{label}: bits of what was dropped differ")
            if not torch.equal(backend.scale_kept(x, bits, 2.0), torch.where(kept, 2 * x, 0 * x)):
                raise BrokenPromiseError(f"{label}: scale_kept differs")
            for name in ("gelu", "silu"):
                curve, eps = CURVES[name], torch.finfo(dtype).eps
                y = eager.scale_kept(curve.forward(x), bits, scale)
                side = pack(curve.left(x)) | bits
                got = backend.activation_backward(grad, y, side, curve, scale)
                due = grad.double() * scale * curve.derivative(x.double(), torch) * kept
                h, slot, planes = eager.gated_forward(x, up, curve)
                y, slot = eager.scale_kept(h, bits, scale), torch.where(kept, slot, 0.0)
                planes[..., -bits.shape[-1] :] |= bits
                gate_grad, up_grad = torch.empty_like(h), torch.empty_like(h)
                backend.gated_backward(grad, y, slot, planes, curve, gate_grad, up_grad, scale)
                found = {
                    "activation": (got, due),
                    "gate": (gate_grad, due * up.double()),
                    "up": (up_grad, grad.double() * scale * curve.function(x.double(), torch) * kept),
                }
                for what, (ours, exact) in found.items():
                    if bool((ours[~kept] != 0).any()):
                        raise BrokenPromiseError(f"{label} {name} {what}: a gradient where it was dropped")
                    key = f"{what} {dtype}"
                    worst[key] = max(worst.get(key, 0.0), _relative(ours, exact) / eps)
    if not all(error <= (200 if "float32" in key else 4) for key, error in worst.items()):
        raise BrokenPromiseError(worst)
    return worst


def dropout_draws_as_pytorch(device: torch.device, dry: bool) -> Report:
    """On a GPU: PyTorch's bits and its generator's state, two masks for two dropouts, new ones at each replay."""
    if dry:
        return {"skipped": "needs a GPU"}
    x, up = (torch.randn(96, 1000, device=device, requires_grad=True) for _ in range(2))
    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "plain": (lambda: optiacts.dropout(x, 0.3), lambda: functional.dropout(x, 0.3)),
        "inplace": (
            lambda: optiacts.dropout(x * 1, 0.3, inplace=True),
            lambda: functional.dropout(x * 1, 0.3, inplace=True),
        ),
        "gelu": (
            lambda: optiacts.activation_dropout(x, "gelu", 0.3),
            lambda: functional.dropout(functional.gelu(x), 0.3),
        ),
        "relu": (
            lambda: optiacts.activation_dropout(x, "relu", 0.3),
            lambda: functional.dropout(functional.relu(x), 0.3),
        ),
        "silu gate": (
            lambda: optiacts.gated_dropout(x, up, "silu", 0.3),
            lambda: functional.dropout(functional.silu(x) * up, 0.3),
        ),
    }
    worst: Report = {}
    for name, (ours, theirs) in pairs.items():
        results = []
        for run in (ours, theirs):
            torch.cuda.manual_seed(7)
            y = run()
            (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
            results.append((y, grad, torch.cuda.get_rng_state()))
        (y, grad, state), (expected, due, wanted) = results
        if not torch.equal(y, expected) or not torch.equal(state, wanted):
            raise BrokenPromiseError(f"{name}: not PyTorch's numbers")
        worst[name] = _relative(grad, due)
        if worst[name] > 1e-4 or torch.equal(ours(), ours()):
            raise BrokenPromiseError({name: worst[name]})
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x = x.detach().clone().requires_grad_()  # a leaf that autograd has not met on the legacy stream
        y = optiacts.activation_dropout(x, "gelu", 0.3)
        torch.autograd.grad(y, x, torch.ones_like(y))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = optiacts.activation_dropout(x, "gelu", 0.3)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    masks = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        if bool((grad[y == 0] != 0).any()):
            raise BrokenPromiseError("a replay's backward has another mask than its forward")
        masks.append(y == 0)
    if torch.equal(*masks):
        raise BrokenPromiseError("a CUDA graph draws the same mask at each replay")
    return worst


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


def graph_capture(device: torch.device, dry: bool) -> Report:
    """Forward and backward captured in a CUDA graph and replayed on new data."""
    if dry:
        return {"skipped": "needs a GPU"}
    x, grad = torch.randn(64, 1024, device=device), torch.randn(64, 1024, device=device)

    def step() -> tuple[Tensor, Tensor]:
        y, bits = ops.activation_forward(x, "gelu", [])
        return y, ops.activation_backward(grad, y, bits, "gelu", [])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    if not all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True)):
        raise BrokenPromiseError("replay differs from a plain call")
    return {"replayed": True}


def streams(device: torch.device, dry: bool) -> Report:
    """The kernels run on the current stream: behind a sleep and a fill that are queued there."""
    if dry:
        return {"skipped": "needs a GPU"}
    x = torch.zeros(1 << 20, device=device)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.fill_(2.0)
        y, bits = ops.activation_forward(x, "silu", [])
        grad = ops.activation_backward(x, y, bits, "silu", [])
    side.synchronize()
    if not torch.equal(y, torch.nn.functional.silu(x)) or not (grad > 2).all():
        raise BrokenPromiseError("a kernel did not wait for the stream it was called on")
    return {"side stream": True}


def other_device(device: torch.device, dry: bool) -> Report:
    """Tensors on a GPU that is not the current one."""
    if dry or torch.cuda.device_count() < 2:
        return {"skipped": "needs two GPUs"}
    x = torch.randn(4096, device="cuda:1")
    y, bits = ops.activation_forward(x, "gelu", [])
    ops.activation_backward(y, y, bits, "gelu", [])
    if torch.cuda.current_device() != 0 or not torch.equal(y, torch.nn.functional.gelu(x)):
        raise BrokenPromiseError("wrong on the second GPU")
    return {"devices": torch.cuda.device_count()}


def no_synchronisation(device: torch.device, dry: bool) -> Report:
    """Once compiled, no call waits for the GPU."""
    if dry:
        return {"skipped": "needs a GPU"}
    x = torch.randn(64, 1000, device=device, requires_grad=True)
    optiacts.gelu(x).backward(x.detach())
    torch.cuda.set_sync_debug_mode("error")
    try:
        optiacts.gelu(x).backward(x.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"synchronises": False}


CHECKS = (
    forward_is_pytorchs,
    forward_is_exact,
    decode_16_bit,
    decode_float32,
    layouts,
    gated,
    norms,
    norms_are_exact_or_an_error,
    dropout_kernels,
    dropout_draws_as_pytorch,
    beyond_32_bits,
    autograd,
    conversion,
    graph_capture,
    streams,
    other_device,
    no_synchronisation,
)


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
