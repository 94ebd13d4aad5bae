"""The chains' CPU backend: the kernels of csrc/chains.cpp, called with ctypes; see ``optiacts.backends.native``.

Each element is decoded once, where what is normalised together fits into a thread's share of the cache, else twice.
Results are those of ``optiacts.backends.eager_chain`` within the rounding of float32; the weight's and the bias's may
differ in it by the number of threads. What has no kernel (float64, a rare mixture of dtypes, nothing to compute) is
left to eager.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optiacts import curves, recording
from optiacts._torch import once
from optiacts.backends import eager_chain, native, native_library
from optiacts.backends.native_constants import (
    DTYPES,
    CurveStruct,
    LinesStruct,
    NearStruct,
    curve_struct,
    lines_struct,
    near_struct,
    table_of,
    table_type,
)
from optiacts.backends.native_forward import forward_into, is_fused
from optiacts.backends.native_library import library, run_with
from optiacts.chains import Chain, SavedChain
from optiacts.curves import Curve, Unimodal
from optiacts.decoders.lines import lines_with_input
from optiacts.decoders.polynomials import DEGREE
from optiacts.decoders.preimage import PIECES, preimage_coefficients, preimage_table, smallest_share
from optiacts.decoders.registers import INPUT_DEGREE, input_registers
from optiacts.decoders.table import decode_table
from optiacts.recording import Lasting

name = "native"

_STATISTICS = ("rows", "batch", "given")  # in the order of csrc/optiacts.h
_ELEMENTS_PER_THREAD = 1 << 14  # take it about 10 µs
_ROWS_AT_ONCE = 16  # of all channels: ROWS_PER_SUM of csrc/chains.cpp
_DECODED_AT_ONCE = 1 << 13  # elements of short rows, whose sums alone would take longer
_KEPT = 1 << 20  # elements that a thread keeps decoded: 4 MiB, or, if the result is of 16 bits, 8
_MOST_WORKSPACE = 1 << 22  # numbers of float32 that stay for the next backward: 16 MiB
_HUGE_PAGE = 2 << 20  # bytes


def forward(z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The activation's own output, and the packed side bits of ``rows(z)``.

    In one pass, where a kernel has PyTorch's bits.
    """
    laid = rows(z)
    if is_fused(curve, z) and laid.data_ptr() == z.data_ptr():
        y = torch.empty_like(z)
        return y, forward_into(y, laid, curve)
    return curve.forward(z), side_bits(laid, curve)


def forward_(z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The same, with the output in the place of z."""
    laid = rows(z)
    if is_fused(curve, z) and laid.data_ptr() == z.data_ptr():
        return z, forward_into(laid, laid, curve)
    bits = side_bits(laid, curve)
    return curve.forward_(z), bits


def side_bits(rows: Tensor, curve: Curve) -> Tensor:
    """The packed side bits of the activation's input."""
    return native.side_bits(rows, curve) if curve.decoder.side_bits else eager_chain.side_bits(rows, curve)


def excess(z: Tensor, furthest: float) -> Tensor:
    """See ``eager_chain.excess``."""
    dense = z.is_contiguous() or (z.ndim == 4 and z.is_contiguous(memory_format=torch.channels_last))
    z = z if dense else z.contiguous()
    threads = min(native_library.threads(), z.numel() // _ELEMENTS_PER_THREAD + 1)
    number = DTYPES.index(z.dtype)
    return torch.tensor(library().optiacts_excess(number, z.data_ptr(), z.numel(), -furthest, threads))


def statistics(rows: Tensor, kind: Chain, last: bool) -> tuple[Tensor, Tensor]:
    """mean and rstd of what ``rows`` made; see ``Chain.taken``. In one pass, or in two over what is in the cache."""
    if rows.dtype not in native.dtypes or not rows.numel():
        return eager_chain.statistics(rows, kind, last)
    rows, batch = rows.contiguous(), kind.statistics == "batch"
    samples, channels, positions = rows.shape if not last else (rows.shape[0], rows.shape[2], rows.shape[1])
    mean = torch.empty(channels if batch else (samples, kind.groups), dtype=torch.float32, device="cpu")
    rstd = torch.empty_like(mean)
    threads = native_library.threads()
    size = native_library.run("chain_statistics_workspace", samples, channels, threads)
    workspace = torch.empty(size, dtype=torch.float64, device="cpu")
    native_library.run(
        "chain_statistics", DTYPES.index(rows.dtype), rows.data_ptr(), samples, channels, positions,
        0 if batch else kind.groups, kind.centered, last, kind.eps, mean.data_ptr(), rstd.data_ptr(),
        workspace.data_ptr(), threads,
    )  # fmt: skip
    return mean, rstd


def chain_backward(grad: Tensor, saved: SavedChain, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """All three gradients; see ``eager_chain.chain_backward``."""
    y, bits, rstd, scale, shift, mean, columns, rescued, curve, statistics, centered, last = saved
    count, kind = y.numel(), y.dtype
    numbers = _numbers(kind, grad.dtype, dtype, None if rescued is None else rescued.dtype)
    if numbers is None or not count or not native.are_single(rstd, scale, shift, mean):
        return eager_chain.chain_backward(grad, saved, dtype)
    samples, channels, positions = y.shape
    if last:
        channels, positions = positions, channels
    grad, y, bits, rstd = grad.contiguous(), y.contiguous(), bits.contiguous(), rstd.contiguous()
    scale = torch.ones(channels, dtype=torch.float32, device="cpu") if scale is None else scale.contiguous()
    shift = torch.zeros(channels, dtype=torch.float32, device="cpu") if shift is None else shift.contiguous()
    mean = None if mean is None else mean.contiguous()
    groups = rstd.shape[1] if statistics == "rows" else 1
    rescue, rescues = None, 0
    if columns is not None and rescued is not None:
        rescued, rescues = rescued.contiguous(), columns.numel()
        rescue = torch.full((channels,), -1).index_copy(0, columns.long(), torch.arange(rescues))
    threads = min(native_library.threads(), count // _ELEMENTS_PER_THREAD + 1)
    decoded = channels * _ROWS_AT_ONCE if last else max(positions, _DECODED_AT_ONCE)
    together = positions * (channels if last else channels // groups)
    if statistics == "batch":
        together = samples * positions if not last else -(-samples * positions // threads) * channels
    kept = together if together <= _KEPT and statistics != "given" else 0
    room = max(
        2 * decoded, kept + kept % 2 if dtype is torch.float32 else 2 * kept
    )  # even: the workspace has doubles
    size = 6 * channels + threads * (room + 16 * channels)
    workspace: int | None
    if 4 * size < _HUGE_PAGE:
        workspace = None  # the thread keeps one of its own
    elif size <= _MOST_WORKSPACE:
        workspace = recording.number(_workspace.address, size)
    else:
        large = torch.empty(size, dtype=torch.float32, device="cpu")
        native.ask_for_huge_pages(large, large.nbytes)
        workspace = large.data_ptr()
    by_scale = torch.empty(channels, dtype=torch.float32, device="cpu")
    by_shift = torch.empty_like(by_scale)
    dx = torch.empty(grad.shape, dtype=dtype, device="cpu")
    native.ask_for_huge_pages(dx, count * dx.itemsize)
    decoder = _decoder(curve, kind)
    refused = run_with(
        "chain_backward", _Chain,
        grad.data_ptr(), y.data_ptr(), bits.data_ptr(), decoder.address, rstd.data_ptr(), _address(mean),
        scale.data_ptr(), shift.data_ptr(), _address(rescue), _address(rescued), dx.data_ptr(), by_scale.data_ptr(),
        by_shift.data_ptr(), workspace, -(-size // 2), samples, channels, positions, groups, rescues, _KEPT, room,
        *numbers, decoder.closed, _STATISTICS.index(statistics), centered, last, threads,
    )  # fmt: skip
    if refused:
        raise MemoryError("optiacts: too little memory for the sums of a chain's gradients")
    return dx, by_scale, by_shift


@once
def _numbers(
    y: torch.dtype, grad: torch.dtype, dx: torch.dtype, rescued: torch.dtype | None
) -> tuple[int, int, int] | None:
    """The numbers of the dtypes of y, of what is rescued and of the result; None if there is no kernel for them."""
    formats = y, rescued or y, dx
    if grad is not y or not native.dtypes.issuperset(formats):
        return None
    first, second, third = map(DTYPES.index, formats)
    return first, second, third


class _Workspace(threading.local):
    """What csrc/workspace.h keeps, in huge pages."""

    kept: Any = (ctypes.c_float * 0)()

    def address(self, count: int) -> int:
        """Where there is room for so many numbers of float32, holding anything, until this thread asks again."""
        if len(self.kept) < count:
            self.kept = _room(count)
        return ctypes.addressof(self.kept)


_workspace = _Workspace()


def _room(count: int) -> Any:
    """New memory for so many numbers of float32, in huge pages where it fills some.

    With small ones each backward asks the page table for thousands of them, twice: up to a tenth of its time.
    """
    size = 4 * count
    if size < _HUGE_PAGE or not native.huge_pages:
        return (ctypes.c_float * count)()
    memory = mmap.mmap(-1, size + _HUGE_PAGE, access=mmap.ACCESS_COPY)  # a forked process gets its own
    whole = (ctypes.c_char * len(memory)).from_buffer(memory)
    library().optiacts_huge_pages(ctypes.addressof(whole), len(memory))
    return (ctypes.c_float * count).from_buffer(memory, -ctypes.addressof(whole) % _HUGE_PAGE)


class _Chain(ctypes.Structure):
    """``optiacts_chain`` of csrc/optiacts.h."""

    _fields_ = [
        *[(address, ctypes.c_void_p) for address in (
            "grad", "y", "bits", "decoder", "rstd", "mean", "scale", "shift", "rescue", "rescued", "grad_x",
            "by_scale", "by_shift", "workspace",
        )],
        *[(size, ctypes.c_int64) for size in (
            "workspace_size", "samples", "channels", "positions", "groups", "rescues", "scratch", "room",
        )],
        *[(number, ctypes.c_int32) for number in (
            "dtype", "rescued_dtype", "result_dtype", "closed", "statistics", "centered", "last", "threads",
        )],
    ]  # fmt: skip


class _Curve(ctypes.Structure):
    """``optiacts_chain_curve`` of csrc/optiacts.h."""

    _fields_ = [
        ("curve", CurveStruct),
        ("per_output", ctypes.c_float),
        ("limits", ctypes.c_float * 2),
        ("breaks", ctypes.c_float * (2 * (PIECES - 1))),
        ("scale", ctypes.c_float * (2 * PIECES)),
        ("shift", ctypes.c_float * (2 * PIECES)),
        ("polynomials", ctypes.c_float * (2 * PIECES) * (DEGREE + 1)),
        ("lines", LinesStruct),
        ("near", NearStruct),
        ("border", ctypes.c_float),
        ("input", table_type(INPUT_DEGREE)),
    ]


class _Closed(ctypes.Structure):
    """``optiacts_chain_closed`` of csrc/optiacts.h."""

    _fields_ = [(name, ctypes.c_float) for name in ("tilt", "slope", "per_output", "most", "reach")]


@dataclass(frozen=True)
class _Decoder:
    address: Lasting
    owner: _Curve | _Closed | Tensor
    closed: bool = False


@once
def _decoder(curve: str, dtype: torch.dtype) -> _Decoder:
    known = curves.get(curve)
    if known.left_of_zero is not None:
        slope, depth = known.left_of_zero.slope, known.left_of_zero.depth
        reach = depth / slope if math.isfinite(depth) else 1 / slope
        closed = _Closed(slope / depth, slope, -1 / depth, 1 - smallest_share(dtype), reach)
        return _Decoder(Lasting(ctypes.addressof(closed)), closed, closed=True)
    if dtype is not torch.float32:
        pairs = torch.stack([decode_table(curve, dtype), preimage_table(curve, dtype)], dim=-1)
        return _Decoder(Lasting(pairs.data_ptr()), pairs)
    c = preimage_coefficients(known)
    rows = tuple((ctypes.c_float * (2 * PIECES))(*row) for row in c.polynomials)
    both = lines_struct(lines_with_input(curve))
    struct = _Curve(curve_struct(known), 1 / known.y_min, c.limits, c.breaks, c.scale, c.shift, rows, both)
    held = input_registers(curve)
    if held is not None:
        near, more = held
        struct.near, struct.border, struct.input = near_struct(known, near), more.border, table_of(more.input)
    return _Decoder(Lasting(ctypes.addressof(struct)), struct)


def serves(curve: Curve) -> bool:
    """Whether there are kernels for a curve."""
    return isinstance(curve.decoder, Unimodal) or curve.left_of_zero is not None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
