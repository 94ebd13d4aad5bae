"""The CPU backend: the kernels of csrc/, called with ctypes. Loaded on first use, never on import.

The forward is PyTorch's own kernel, followed by one pass that packs the side bits, or one kernel that does both
(``native_forward``). The backward is one pass
over gradient, output and bits: float32 by lines, with AVX-512 by polynomials in registers, bfloat16 and float16 by
the exhaustive tables. In 16-bit dtypes every instruction set gives the bits of the eager backend, in float32 all are
within the contract's 2e-6 of f'.

``native_library`` loads them, ``native_constants`` has what they take of a curve.

Environment: ``OPTIACTS_HUGE_PAGES=0`` leaves the pages of large results, and of what chains decode into, as they are.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

from optiacts.backends import eager, native_library
from optiacts.backends.native_constants import DTYPES, Constants, constants_of
from optiacts.backends.native_forward import are_rows_fused, forward_into, is_fused
from optiacts.backends.native_library import run, threads
from optiacts.curves import ClosedForm, Curve, Unimodal
from optiacts.decoders.pieces import has_pieces
from optiacts.layouts import Order, by_rows, permute, restore
from optiacts.packing import pack, packed_shape

name = "native"
dtypes = frozenset(DTYPES)

huge_pages = os.environ.get("OPTIACTS_HUGE_PAGES", "1") != "0"
# A buffer of more than 32 MiB is mapped afresh by malloc each time (glibc's largest threshold for that), and
# then costs more in page faults than in arithmetic. 512 times larger pages take most of that away.
HUGE_PAGES_FROM = 32 << 20 if huge_pages else sys.maxsize


def serves(curve: Curve, dtype: torch.dtype) -> bool:
    """Whether there are kernels for ``curve``: tables of 16 bits for all, in float32 polynomials or pieces."""
    if dtype.itemsize == 2 or has_pieces(curve):
        return True
    return isinstance(curve.decoder, Unimodal)


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot serve ``device``, or None if it can."""
    if device.type != "cpu":
        return "serves CPU only"
    return native_library.lacking()


def activation_forward(x: Tensor, curve: Curve, order: Order) -> tuple[Tensor, Tensor]:
    """PyTorch's own output, and the packed side bits."""
    if is_fused(curve, x) and (laid := permute(x, order) if order else x).is_contiguous():
        y = _result_like(x)
        return y, forward_into(y, laid, curve)
    constants = constants_of(curve.name, x.dtype)
    if curve.forward_out is not None and x.nbytes >= HUGE_PAGES_FROM and x.is_contiguous():
        y = curve.forward_out(x.detach(), _result_like(x))
    else:
        y = curve.forward(x)
    return y, _pack(permute(x, order), constants)


def activation_forward_(x: Tensor, curve: Curve, order: Order) -> Tensor:
    """Overwrites ``x`` with the output and returns the packed side bits."""
    if is_fused(curve, x) and (laid := permute(x, order)).is_contiguous():
        return forward_into(x, laid, curve)
    bits = _pack(permute(x, order), constants_of(curve.name, x.dtype))
    curve.forward_(x)
    return bits


def activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: Curve, scale: float | None = None) -> Tensor:
    """``grad`` * f'(x), in the dtype of ``y``."""
    if grad.dtype != y.dtype or (isinstance(curve.decoder, ClosedForm) and curve.decoder.backward is not None):
        return eager.activation_backward(grad, y, bits, curve, scale)
    constants = constants_of(curve.name, y.dtype)
    grad, y_read, bits = grad.contiguous(), y.contiguous(), bits.contiguous()
    if constants.planes == 0:
        bits = _no_bits(y)
    out = _result_like(y_read)
    rows, cols = rows_and_columns(y)
    kernel, factors = _for_scale("backward", scale)
    run(
        kernel, constants.dtype, grad.data_ptr(), y_read.data_ptr(), bits.data_ptr(), out.data_ptr(), rows, cols,
        constants.decoder, *factors, threads(),
    )  # fmt: skip
    if isinstance(curve.decoder, Unimodal) and curve.decoder.ends is not None:
        out.masked_fill_(y_read >= curve.ceiling(y.dtype), 0.0)
    return out


def gated_forward(gate: Tensor, up: Tensor, curve: Curve, order: Order = ()) -> tuple[Tensor, Tensor, Tensor]:
    """h = act(gate) * up, the slot and the packed bits; rows of gate and up may lie apart (a fused projection's)."""
    constants = constants_of(curve.name, gate.dtype)
    gate_rows, gate_stride = by_rows(permute(gate, order) if order else gate)
    up, up_stride = by_rows(permute(up, order) if order else up)
    kernel = "gated_forward"
    if are_rows_fused(curve, gate, gate_rows):
        kernel, slot = f"gated_{curve.native}", _result_like(gate_rows, contiguous=True)
    elif gate.nbytes >= HUGE_PAGES_FROM and curve.forward_out is not None and gate_rows is gate:
        slot = curve.forward_out(gate.detach(), _result_like(gate, contiguous=True))
    else:
        s = curve.forward(gate)
        if s.dtype != gate.dtype:  # widened by autocast
            return eager.gated_forward(gate, restore(up, order), curve, order)
        slot = (permute(s, order) if order else s).contiguous()
    h = _result_like(slot)
    bits = gate.new_empty(*packed_shape(slot.shape, 2), dtype=torch.uint8)
    run(
        kernel, constants.dtype, gate_rows.data_ptr(), gate_stride, up.data_ptr(), up_stride,
        h.data_ptr(), slot.data_ptr(), bits.data_ptr(), *rows_and_columns(slot), *constants.borders, threads(),
    )  # fmt: skip
    return (
        restore(h, order) if order else h,
        slot,
        bits if constants.planes else bits.chunk(2, dim=-1)[1].contiguous(),
    )


def gated_backward(
    grad: Tensor,
    h: Tensor,
    slot: Tensor,
    bits: Tensor,
    curve: Curve,
    grad_gate: Tensor,
    grad_up: Tensor,
    scale: float | None = None,
) -> None:
    """Writes grad * up * f'(gate) and grad * act(gate), in place into the halves of a fused projection's gradient."""
    if isinstance(curve.decoder, Unimodal) and curve.decoder.ends is not None:
        eager.gated_backward(grad, h, slot, bits, curve, grad_gate, grad_up, scale)
        return
    constants = constants_of(curve.name, h.dtype)
    if constants.planes == 0:
        bits = torch.cat([_no_bits(h), bits], dim=-1)
    grad, h, slot, bits = grad.contiguous(), h.contiguous(), slot.contiguous(), bits.contiguous()
    gate_out, gate_stride = by_rows(grad_gate)  # a copy if its rows are not regular
    up_out, up_stride = by_rows(grad_up)
    rows, cols = rows_and_columns(h)
    if h.nbytes >= HUGE_PAGES_FROM:
        for result, stride in ((gate_out, gate_stride), (up_out, up_stride)):
            ask_for_huge_pages(result, rows * stride * result.itemsize)
    kernel, factors = _for_scale("gated_backward", scale)
    run(
        kernel, constants.dtype, grad.data_ptr(), h.data_ptr(), slot.data_ptr(), bits.data_ptr(),
        gate_out.data_ptr(), gate_stride, up_out.data_ptr(), up_stride, rows, cols, constants.decoder, *factors,
        threads(),
    )  # fmt: skip
    if gate_out is not grad_gate:
        grad_gate.copy_(gate_out)
    if up_out is not grad_up:
        grad_up.copy_(up_out)


def pack_dropped(kept: Tensor) -> Tensor:
    """The packed bits of what a dropout did not keep, from the bools of what it kept."""
    bits = kept.new_empty(*packed_shape(kept.shape), dtype=torch.uint8)
    kept = kept.contiguous()
    run("pack_dropped", kept.data_ptr(), bits.data_ptr(), *rows_and_columns(kept), threads())
    return bits


def scale_kept(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
    """``x * scale``, and ``x * 0`` where the packed bit is set."""
    read, dropped = x.contiguous(), dropped.contiguous()
    out = _result_like(read)
    run(
        "scale_kept",
        DTYPES.index(x.dtype),
        read.data_ptr(),
        dropped.data_ptr(),
        out.data_ptr(),
        *rows_and_columns(x),
        scale,
        threads(),
    )
    return out


def side_bits(x: Tensor, curve: Curve) -> Tensor:
    """The packed side bits alone."""
    return _pack(x, constants_of(curve.name, x.dtype))


def _for_scale(name: str, scale: float | None) -> tuple[str, tuple[float, ...]]:
    """The kernel's name, and what it takes besides: behind a dropout the scale and its inverse."""
    return (name, ()) if scale is None else (f"dropped_{name}", (scale, 1 / scale))


def are_single(*tensors: Tensor | None) -> bool:
    """Whether all of them are float32, the precision in which the kernels of norms and chains compute."""
    for tensor in tensors:  # noqa: SIM110  a generator takes three times as long
        if tensor is not None and tensor.dtype is not torch.float32:
            return False
    return True


def rows_and_columns(x: Tensor) -> tuple[int, int]:
    """Rows and columns of a contiguous tensor: the bits of each row start at a new byte."""
    shape = x.shape
    cols = shape[-1] if shape else 1
    return (x.numel() // cols, cols) if cols else (0, 0)


def _no_bits(x: Tensor) -> Tensor:
    """A plane that says nothing, for kernels that read one where the curve has none."""
    return x.new_zeros(packed_shape(x.shape), dtype=torch.uint8)


def _pack(x: Tensor, constants: Constants) -> Tensor:
    if constants.planes == 0:
        return x.new_empty(packed_shape(x.shape, 0), dtype=torch.uint8)
    if constants.span < 0:  # the patterns below a positive threshold are no single range
        return pack(x < constants.borders[0])
    bits = x.new_empty(*packed_shape(x.shape), dtype=torch.uint8)
    x = x.contiguous()
    rows, cols = rows_and_columns(x)
    run(
        "pack", constants.dtype, x.data_ptr(), bits.data_ptr(), rows, cols, constants.first, constants.span, threads()
    )
    return bits


def _result_like(x: Tensor, contiguous: bool = False) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if contiguous else torch.empty_like(x)
    if out.nbytes >= HUGE_PAGES_FROM:
        ask_for_huge_pages(out, out.nbytes)
    return out


def ask_for_huge_pages(fresh: Tensor, nbytes: int) -> None:
    """For a fresh buffer, if it is large."""
    if nbytes >= HUGE_PAGES_FROM:
        run("huge_pages", fresh.data_ptr(), nbytes)
