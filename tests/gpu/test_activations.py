"""Activations: the forward bit by bit, the decode, memory layouts, tensors beyond 2^31 elements, autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import optiacts
from optiacts import ops
from optiacts.accuracy import errors_against_floors
from optiacts.backends import eager
from optiacts.backends import triton as backend
from optiacts.backends.triton import launch
from optiacts.curves import Curve, unimodal
from optiacts.decoders.inverse import derivative_from_output
from optiacts.decoders.table import every_value
from optiacts.packing import pack

from .common import CURVES, DEVICE, DTYPES, INTERPRETED, SIXTEEN_BIT, Record, named, same_output

GPU_SLACK = 1.3  # on the floors of the 16-bit decode
FLOAT32_FAR, FLOAT32_ANYWHERE = 2e-6, 1.2e-4


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("curve", CURVES, **named)
def test_forward_is_pytorchs(curve: Curve, dtype: torch.dtype, record_property: Record) -> None:
    """Every 16-bit and every float32 input: our fused forward against PyTorch's op, bit by bit."""
    wrong, first = 0, None
    for x in _inputs(dtype):
        y = torch.empty_like(x)
        bits = launch.forward(x, y, curve)
        assert torch.equal(bits, pack(x < curve.threshold(dtype)))
        unequal = (_pattern(y) != _pattern(curve.forward(x))) & ~(y.isnan() & x.isnan())
        if unequal.any():
            wrong += int(unequal.sum())
            first = first or float(x[unequal][0])
    fused = launch.fused(curve, dtype, DEVICE)
    record_property("fused", fused)
    record_property("different inputs", wrong)
    if fused and not INTERPRETED:  # the interpreter's functions are numpy's
        assert wrong == 0, f"{wrong} inputs, for example {first}"


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, **named)
@pytest.mark.parametrize("curve", CURVES, **named)
def test_forward_is_exact(curve: Curve, dtype: torch.dtype, record_property: Record) -> None:
    """Every finite 16-bit input: our fused forward against float64 mathematics.

    The error is given as a multiple of what is due: two units in the last place of y and one of x (QuickGELU
    rounds three times, once before its sigmoid), and what float32 arithmetic loses where 1 + erf or 1 + tanh
    cancels in the left tail.
    """
    x = every_value(dtype)
    x = x[x.isfinite()].to(DEVICE)
    y = torch.empty_like(x)
    launch.forward(x, y, curve)
    exact = curve.function(x.double(), torch)
    eps, slope = torch.finfo(dtype).eps, curve.derivative(x.double(), torch)
    due = eps * (2 * exact.abs() + (x * slope).abs()) + 2e-7 * x.double().abs().clamp(max=10)
    tiny = torch.finfo(dtype).smallest_normal
    due = due.clamp(min=2 * tiny if INTERPRETED else tiny * eps)  # the interpreter garbles subnormal bfloat16
    ratio = float(((y.double() - exact).abs() / due).max())
    record_property("error", ratio)
    assert ratio <= 1


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, **named)
@pytest.mark.parametrize("curve", CURVES, **named)
def test_decode_of_16_bits(curve: Curve, dtype: torch.dtype, record_property: Record) -> None:
    """Every finite 16-bit input: worst and RMS error of the decode as multiples of the floors."""
    x = every_value(dtype)
    x = x[x.isfinite()].to(DEVICE)
    y = curve.forward(x)
    decoded = _decode(y, pack(x < curve.threshold(dtype)), curve)
    e = errors_against_floors(curve, x.cpu(), y.cpu(), decoded.cpu())
    worst, rms = e.worst / e.worst_floor, e.rms / e.rms_floor
    record_property("worst", worst)
    record_property("rms", rms)
    assert worst <= GPU_SLACK
    assert rms <= GPU_SLACK


@pytest.mark.parametrize("curve", CURVES, **named)
def test_decode_of_float32(curve: Curve, record_property: Record) -> None:
    """float32: largest error against exact inversion away from the minimum, and against f'(x) anywhere.

    The latter of ``rounded`` outputs, those of the mathematics, and of PyTorch's own. Of these, exact inversion alone
    errs by ``lost``, which depends on the device: near the minimum f' hangs on the last bits of y.
    """
    near = torch.linspace(curve.x_min - 2e-3, curve.x_min + 2e-3, 4_001 if INTERPRETED else 200_001)
    x = torch.cat([torch.linspace(-15, 15, 4_001 if INTERPRETED else 2_000_001), near]).to(DEVICE)
    y, left, truth = curve.forward(x), x < curve.threshold(x.dtype), curve.derivative(x.double(), torch)
    rounded = curve.function(x.double(), torch).float()
    decoded = _decode(y, pack(left), curve).double()
    exact = derivative_from_output(curve, y.double(), left)
    far = (x.double() - curve.x_min).abs() > 0.1
    found = {
        "far": float((decoded - exact).abs()[far].max()),
        "anywhere": float((decoded - truth).abs().max()),
        "lost": float((exact - truth).abs().max()),
        "rounded": float((_decode(rounded, pack(left), curve).double() - truth).abs().max()),
    }
    for name, error in found.items():
        record_property(name, error)
    assert found["far"] <= FLOAT32_FAR
    assert found["rounded"] <= FLOAT32_ANYWHERE
    assert found["anywhere"] <= max(FLOAT32_ANYWHERE, found["lost"])


BASE = 100_000  # elements, of which each layout takes some
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "scalar": lambda base: base[0],
    "empty": lambda base: base[:0].reshape(0, 5),
    "one column": lambda base: base[:9].reshape(9, 1),
    "odd rows": lambda base: base[: 7 * 131].reshape(7, 131),
    "whole bytes": lambda base: base[: 3 * 40].reshape(3, 40),
    "several programs": lambda base: base[:16_384].reshape(8, 2048),
    "unaligned": lambda base: base[1 : 1 + 4096].reshape(4, 1024),
    "strided": lambda base: base[: 64 * 64].reshape(64, 64)[:, ::2],
    "transposed": lambda base: base[: 64 * 96].reshape(64, 96).t(),
    "expanded": lambda base: base[:64].expand(8, 64),
    "channels_last": lambda base: base[: 2 * 16 * 64].reshape(2, 16, 8, 8).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("label", LAYOUTS)
def test_layouts(label: str, dtype: torch.dtype) -> None:
    """Shapes whose rows end within a byte, scalars, empty, unaligned, strided and channels_last tensors, in place."""
    x = LAYOUTS[label](torch.randn(BASE, device=DEVICE).to(dtype))
    for name in ["gelu"] if INTERPRETED else list(unimodal()):
        curve, grad = unimodal()[name], torch.randn_like(x)
        expected_y, expected_bits = eager.activation_forward(x, curve, [])
        y, bits = backend.activation_forward(x, curve, [])
        product = backend.activation_backward(grad, expected_y, bits, curve).float()
        assert torch.equal(bits, expected_bits)
        assert y.stride() == torch.empty_like(x).stride()
        assert same_output(y, expected_y, 2)
        # where f' is steep in y, near the minimum, the two decoders may differ by the floors of the 16-bit dtypes
        slack = {torch.bfloat16: 0.02, torch.float16: 0.008, torch.float32: 2e-5}[dtype]
        expected = eager.activation_backward(grad.float(), expected_y.float(), bits, curve)
        if dtype != torch.float32:
            expected = eager.activation_backward(grad, expected_y, bits, curve).float()
        assert ((product - expected).abs() <= slack * grad.float().abs() + slack / 10).all()
        if label != "expanded":
            changed = x.clone(memory_format=torch.preserve_format)
            assert torch.equal(backend.activation_forward_(changed, curve, []), bits)
            assert torch.equal(changed, y)


TAIL = 1 << 12
ELEMENTS = (1 << 16 if INTERPRETED else 1 << 31) + TAIL


@pytest.mark.parametrize("label", ["flat", "odd rows"])
def test_beyond_32_bits(label: str) -> None:
    """A tensor of more than 2^31 elements: its last part is as if it stood alone."""
    if not INTERPRETED and torch.cuda.mem_get_info(DEVICE)[0] < 9 * ELEMENTS:
        pytest.skip(f"needs {9 * ELEMENTS / 2**30:.0f} GiB of free memory")
    shape = (ELEMENTS,) if label == "flat" else (ELEMENTS // 4097, 4097)
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_()
    y, bits = ops.activation_forward(x, "gelu", [])
    rows = slice(-TAIL, None) if label == "flat" else slice(-2, None)
    expected_y, expected_bits = ops.activation_forward(x[rows].clone(), "gelu", [])
    byte_rows = slice(-TAIL // 8, None) if label == "flat" else rows
    assert torch.equal(y[rows], expected_y)
    assert torch.equal(bits[byte_rows], expected_bits)
    del x
    grad = ops.activation_backward(y, y, bits, "gelu", [])
    assert torch.equal(grad[rows], ops.activation_backward(expected_y, expected_y, expected_bits, "gelu", []))


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": optiacts.gelu,
    "gelu_tanh": functools.partial(optiacts.gelu, approximate="tanh"),
    "silu": optiacts.silu,
    "mish": optiacts.mish,
    "quick_gelu": optiacts.quick_gelu,
}


@pytest.mark.parametrize("name", CALLS)
def test_autograd(name: str, record_property: Record) -> None:
    """optiacts.gelu and its sisters on a device tensor, against float64 derivatives, through autograd."""
    x = torch.linspace(-6, 6, 4096, device=DEVICE).requires_grad_()
    (grad,) = torch.autograd.grad(CALLS[name](x).sum(), x)
    far = (x.detach().double() - unimodal()[name].x_min).abs() > 0.1
    error = float((grad.double() - unimodal()[name].derivative(x.detach().double(), torch)).abs()[far].max())
    record_property("error", error)
    assert error <= 1e-5


def _inputs(dtype: torch.dtype) -> Iterator[Tensor]:
    """All values of ``dtype`` in parts; in the interpreter every 65,521-st of the float32 ones."""
    if dtype != torch.float32:
        yield every_value(dtype).to(DEVICE)
    elif INTERPRETED:
        yield torch.arange(-(2**31), 2**31, 65_521).to(torch.int32).view(torch.float32)[: 1 << 16]
    else:
        size = 1 << 26
        for start in range(-(2**31), 2**31, size):
            yield torch.arange(start, start + size, device=DEVICE).to(torch.int32).view(torch.float32)


def _pattern(y: Tensor) -> Tensor:
    return y.view(torch.int16 if y.element_size() == 2 else torch.int32)


def _decode(y: Tensor, bits: Tensor, curve: Curve) -> Tensor:
    """f' in float32, not rounded to the dtype of ``y``: the backward kernel with a float32 result."""
    decoded = torch.empty(y.shape, dtype=torch.float32, device=y.device)
    launch.backward(torch.ones_like(y), y, bits, decoded, curve)
    return decoded
