"""The CPU backend: the kernels of csrc/, called with ctypes. Loaded on first use, never on import.

The forward is PyTorch's own kernel, followed by one pass that packs the side bits. The backward is one pass
over gradient, output and bits: float32 by the generated polynomials, bfloat16 and float16 by the exhaustive
tables. In 16-bit dtypes every instruction set gives the bits of the eager backend; in float32 AVX2 and AVX-512
agree to the bit, and all are within a few units in the last place of each other and of eager.

Environment: ``OPTIACTS_CPU_LEVEL`` = portable, avx2 or avx512 chooses a lower level than the best one,
``OPTIACTS_CPU_LIBRARY`` names another build of the kernels (`make asan`),
``OPTIACTS_HUGE_PAGES=0`` leaves the pages of large results as the system makes them.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optiacts import curves
from optiacts._torch import once
from optiacts.backends import eager
from optiacts.curves import ClosedForm, Curve, Unimodal
from optiacts.decoders import lines, valley
from optiacts.decoders.pieces import COUNT, FIRST, SHIFT, has_pieces, pieces
from optiacts.decoders.polynomials import DEGREE, PIECES, coefficients
from optiacts.decoders.table import slot_table
from optiacts.layouts import Order, by_rows, permute, restore
from optiacts.packing import pack, packed_shape

name = "native"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of csrc/optiacts.h
dtypes = frozenset(DTYPES)
IN_PIECES = 3  # what csrc/optiacts.h calls float32 that is decoded in pieces
LEVELS = ("portable", "avx2", "avx512")
FILE = "_native.so"

# A buffer of more than 32 MiB is mapped afresh by malloc each time (glibc's largest threshold for that), and
# then costs more in page faults than in arithmetic. 512 times larger pages take most of that away.
_HUGE_PAGES_FROM = 32 << 20 if os.environ.get("OPTIACTS_HUGE_PAGES", "1") != "0" else sys.maxsize


def serves(curve: Curve, dtype: torch.dtype) -> bool:
    """Whether there are kernels for ``curve``: tables of 16 bits for all, in float32 polynomials or pieces."""
    if dtype.itemsize == 2 or has_pieces(curve):
        return True
    return isinstance(curve.decoder, Unimodal)


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot serve ``device``, or None if it can."""
    if device.type != "cpu":
        return "serves CPU only"
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def activation_forward(x: Tensor, curve: Curve, order: Order) -> tuple[Tensor, Tensor]:
    """PyTorch's own output, and the packed side bits."""
    constants = _constants(curve.name, x.dtype)
    if curve.forward_out is not None and x.nbytes >= _HUGE_PAGES_FROM and x.is_contiguous():
        y = curve.forward_out(x.detach(), _result_like(x))
    else:
        y = curve.forward(x)
    return y, _pack(permute(x, order), constants)


def activation_forward_(x: Tensor, curve: Curve, order: Order) -> Tensor:
    """Overwrites ``x`` with the output and returns the packed side bits."""
    bits = _pack(permute(x, order), _constants(curve.name, x.dtype))
    curve.forward_(x)
    return bits


def activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: Curve, scale: float | None = None) -> Tensor:
    """``grad`` * f'(x), in the dtype of ``y``."""
    if grad.dtype != y.dtype or (isinstance(curve.decoder, ClosedForm) and curve.decoder.backward is not None):
        return eager.activation_backward(grad, y, bits, curve, scale)
    constants = _constants(curve.name, y.dtype)
    grad, y_read, bits = grad.contiguous(), y.contiguous(), bits.contiguous()
    if constants.planes == 0:
        bits = _no_bits(y)
    out = _result_like(y_read)
    function, factors = _for_scale("backward", scale)
    function(
        constants.dtype,
        grad.data_ptr(),
        y_read.data_ptr(),
        bits.data_ptr(),
        out.data_ptr(),
        *rows_and_columns(y),
        constants.decoder,
        *factors,
        threads(),
    )
    if isinstance(curve.decoder, Unimodal) and curve.decoder.ends is not None:
        out.masked_fill_(y_read >= curve.ceiling(y.dtype), 0.0)
    return out if y_read is y else torch.empty_like(y).copy_(out)


def gated_forward(gate: Tensor, up: Tensor, curve: Curve, order: Order = ()) -> tuple[Tensor, Tensor, Tensor]:
    """h = act(gate) * up, the slot and the packed bits; rows of gate and up may lie apart (a fused projection's)."""
    constants = _constants(curve.name, gate.dtype)
    gate_rows, gate_stride = by_rows(permute(gate, order))
    up, up_stride = by_rows(permute(up, order))
    if gate.nbytes >= _HUGE_PAGES_FROM and curve.forward_out is not None and gate_rows is gate:
        slot = curve.forward_out(gate.detach(), _result_like(gate, contiguous=True))
    else:
        s = curve.forward(gate)
        if s.dtype != gate.dtype:  # widened by autocast
            return eager.gated_forward(gate, restore(up, order), curve, order)
        slot = permute(s, order).contiguous()
    h = _result_like(slot)
    bits = gate.new_empty(packed_shape(slot.shape, 2), dtype=torch.uint8)
    library().optiacts_gated_forward(
        constants.dtype, gate_rows.data_ptr(), gate_stride, up.data_ptr(), up_stride,
        h.data_ptr(), slot.data_ptr(), bits.data_ptr(), *rows_and_columns(slot), *constants.borders, threads(),
    )  # fmt: skip
    return restore(h, order), slot, bits if constants.planes else bits.chunk(2, dim=-1)[1].contiguous()


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
    constants = _constants(curve.name, h.dtype)
    if constants.planes == 0:
        bits = torch.cat([_no_bits(h), bits], dim=-1)
    grad, h, slot, bits = grad.contiguous(), h.contiguous(), slot.contiguous(), bits.contiguous()
    gate_out, gate_stride = by_rows(grad_gate)  # a copy if its rows are not regular
    up_out, up_stride = by_rows(grad_up)
    rows, cols = rows_and_columns(h)
    for result, stride in ((gate_out, gate_stride), (up_out, up_stride)):
        ask_for_huge_pages(result, rows * stride * result.itemsize)
    function, factors = _for_scale("gated_backward", scale)
    function(
        constants.dtype, grad.data_ptr(), h.data_ptr(), slot.data_ptr(), bits.data_ptr(),
        gate_out.data_ptr(), gate_stride, up_out.data_ptr(), up_stride, rows, cols, constants.decoder, *factors,
        threads(),
    )  # fmt: skip
    for result, wanted in ((gate_out, grad_gate), (up_out, grad_up)):
        if result is not wanted:
            wanted.copy_(result)


def pack_dropped(kept: Tensor) -> Tensor:
    """The packed bits of what a dropout did not keep, from the bools of what it kept."""
    bits = kept.new_empty(packed_shape(kept.shape), dtype=torch.uint8)
    kept = kept.contiguous()
    library().optiacts_pack_dropped(kept.data_ptr(), bits.data_ptr(), *rows_and_columns(kept), threads())
    return bits


def scale_kept(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
    """``x * scale``, and ``x * 0`` where the packed bit is set."""
    read, dropped = x.contiguous(), dropped.contiguous()
    out = _result_like(read)
    library().optiacts_scale_kept(
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
    return _pack(x, _constants(curve.name, x.dtype))


def threads() -> int:
    """How many threads a kernel may use: torch's number, but one in a forked child, whose pool is not alive."""
    return 1 if _in_forked_child else torch.get_num_threads()


def best_level() -> str:
    """The best instruction set that this machine and this build have."""
    return LEVELS[library().optiacts_best_level()]


def level() -> str:
    """The instruction set in use."""
    return LEVELS[library().optiacts_level()]


def use_level(wanted: str) -> None:
    """Chooses the instruction set for this process; ``ValueError`` if it is unknown or this machine lacks it."""
    _use_level(library(), wanted, "level")


def has_threads() -> bool:
    """Whether torch's OpenMP runtime was found, so that large tensors are shared out to threads."""
    return bool(library().optiacts_has_threads())


def _for_scale(name: str, scale: float | None) -> tuple[Any, tuple[float, ...]]:
    """The function called so, and what it takes besides: behind a dropout the scale and its inverse."""
    if scale is None:
        return getattr(library(), f"optiacts_{name}"), ()
    return getattr(library(), f"optiacts_dropped_{name}"), (scale, 1 / scale)


def rows_and_columns(x: Tensor) -> tuple[int, int]:
    """Rows and columns of a contiguous tensor: the bits of each row start at a new byte."""
    shape = x.shape
    cols = shape[-1] if shape else 1
    return (x.numel() // cols, cols) if cols else (0, 0)


def _no_bits(x: Tensor) -> Tensor:
    """A plane that says nothing, for kernels that read one where the curve has none."""
    return x.new_zeros(packed_shape(x.shape), dtype=torch.uint8)


def _pack(x: Tensor, constants: _Constants) -> Tensor:
    if constants.planes == 0:
        return x.new_empty(packed_shape(x.shape, 0), dtype=torch.uint8)
    if constants.span < 0:  # the patterns below a positive threshold are no single range
        return pack(x < constants.borders[0])
    bits = x.new_empty(packed_shape(x.shape), dtype=torch.uint8)
    x = x.contiguous()
    library().optiacts_pack(
        constants.dtype,
        x.data_ptr(),
        bits.data_ptr(),
        *rows_and_columns(x),
        constants.first,
        constants.span,
        threads(),
    )
    return bits


def _result_like(x: Tensor, contiguous: bool = False) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format if contiguous else torch.preserve_format)
    ask_for_huge_pages(out, out.nbytes)
    return out


def ask_for_huge_pages(fresh: Tensor, nbytes: int) -> None:
    """For a fresh buffer, if it is large."""
    if nbytes >= _HUGE_PAGES_FROM:
        library().optiacts_huge_pages(fresh.data_ptr(), nbytes)


@dataclass(frozen=True)
class _Constants:
    """What the C functions take besides tensors, for one curve and dtype."""

    dtype: int
    planes: int  # of side bits
    first: int
    span: int
    borders: tuple[float, float, float]  # between the branches, and the two of the valley
    decoder: int  # the address of
    decoder_owner: _LinesStruct | _PiecesStruct | Tensor


@once
def _constants(curve: str, dtype: torch.dtype) -> _Constants:
    known = curves.get(curve)
    in_pieces = dtype == torch.float32 and has_pieces(known)
    if dtype == torch.float32:
        decoder: _LinesStruct | _PiecesStruct | Tensor = _pieces_struct(known) if in_pieces else _lines_struct(known)
    else:
        decoder = slot_table(curve, dtype)
    planes = known.decoder.side_bits
    # of a curve without branches, an output of 0 whose gradients are 0 counts as left, or none does
    threshold = known.threshold(dtype) if planes else math.inf if known.zero_is_flat else -math.inf
    first, span = _left_patterns(threshold, dtype) if planes and threshold < 0 else (0, -1)
    around = valley.borders(known, dtype) if planes else (math.inf, -math.inf)
    return _Constants(
        dtype=IN_PIECES if in_pieces else DTYPES.index(dtype),
        planes=planes,
        first=first,
        span=span,
        borders=(threshold, *around),
        decoder=decoder.data_ptr() if isinstance(decoder, Tensor) else ctypes.addressof(decoder),
        decoder_owner=decoder,
    )


def _left_patterns(threshold: float, dtype: torch.dtype) -> tuple[int, int]:
    """First unsigned bit pattern of the values below a negative ``threshold``, and how many follow it."""
    if not threshold < 0:
        raise ValueError(f"the threshold of a native curve must be negative; got {threshold}")
    integer = torch.int32 if dtype.itemsize == 4 else torch.int16
    at_threshold, at_infinity = torch.tensor([threshold, -torch.inf], dtype=dtype).view(integer).tolist()
    return (at_threshold + 1) % (1 << 8 * dtype.itemsize), at_infinity - at_threshold - 1


class CurveStruct(ctypes.Structure):
    """``optiacts_curve`` of csrc/optiacts.h."""

    _fields_ = [
        ("y_min_high", ctypes.c_float),
        ("y_min_low", ctypes.c_float),
        ("least", ctypes.c_float),
        ("per_depth", ctypes.c_float),
        ("limits", ctypes.c_float * 2),
        ("breaks", ctypes.c_float * 2),
        ("scale", ctypes.c_float * PIECES),
        ("shift", ctypes.c_float * PIECES),
        ("polynomials", ctypes.c_float * PIECES * (DEGREE + 1)),
    ]


def curve_struct(curve: Curve) -> CurveStruct:
    """The coefficients of ``curve`` as the C functions take them."""
    c = coefficients(curve)
    rows = tuple((ctypes.c_float * PIECES)(*row) for row in c.polynomials)
    return CurveStruct(
        c.y_min_high, c.y_min_low, c.least, -1 / curve.y_min, c.limits, c.breaks, c.scale, c.shift, rows
    )


class _ValleyStruct(ctypes.Structure):
    """``optiacts_valley`` of csrc/optiacts.h."""

    _fields_ = [
        ("border", ctypes.c_float),
        ("centre", ctypes.c_float),
        ("output", ctypes.c_float * (DEGREE + 1)),
        ("slope", ctypes.c_float * (DEGREE + 1)),
    ]


def _valley_struct(curve: Curve) -> _ValleyStruct:
    """That of a curve; of one without branches no slot lies in it."""
    if not curve.decoder.side_bits:
        return _ValleyStruct(-math.inf)
    around = valley.polynomials(curve, torch.float32)
    return _ValleyStruct(valley.borders(curve, torch.float32)[1], around.centre, around.output, around.slope)


class _LinesStruct(ctypes.Structure):
    """``optiacts_lines`` of csrc/optiacts.h."""

    rows_owner: Tensor
    _fields_ = [
        ("high", ctypes.c_float),
        ("low", ctypes.c_float),
        ("most", ctypes.c_float),
        ("first", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("shift", ctypes.c_int32),
        ("rows", ctypes.c_void_p),
        ("valley", _ValleyStruct),
    ]


def _lines_struct(curve: Curve) -> _LinesStruct:
    made = lines.lines(curve.name)
    struct = _LinesStruct(
        made.high,
        made.low,
        lines.MOST,
        lines.FIRST,
        lines.COUNT,
        lines.SHIFT,
        made.rows.data_ptr(),
        _valley_struct(curve),
    )
    struct.rows_owner = made.rows
    return struct


class _PiecesStruct(ctypes.Structure):
    """``optiacts_pieces`` of csrc/optiacts.h."""

    rows_owner: Tensor
    _fields_ = [
        ("high", ctypes.c_float * 2),
        ("low", ctypes.c_float * 2),
        ("sign", ctypes.c_float * 2),
        ("end", ctypes.c_float * 2),
        ("split", ctypes.c_float),
        ("first", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("shift", ctypes.c_int32),
        ("rows", ctypes.c_void_p),
        ("valley", _ValleyStruct),
    ]


def _pieces_struct(curve: Curve) -> _PiecesStruct:
    p = pieces(curve)
    rows = p.rows.contiguous()
    struct = _PiecesStruct(
        p.high, p.low, p.sign, p.end, p.split, FIRST, COUNT, SHIFT, rows.data_ptr(), _valley_struct(curve)
    )
    struct.rows_owner = rows
    return struct


def library() -> ctypes.CDLL:
    """The kernels; ``RuntimeError`` if there are none here."""
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(f"the native CPU kernels are not available: {loaded}")
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none. It lies in the package, be that installed, editable or a source tree."""
    folders = [Path(folder) for folder in sys.modules["optiacts"].__path__]
    named = os.environ.get("OPTIACTS_CPU_LIBRARY")
    built = [Path(named)] if named else [folder / FILE for folder in folders if (folder / FILE).exists()]
    if not built:
        return (
            f"this is a pure-Python install: {FILE} was not built, most likely for want of a C++17 compiler. Results "
            "are the same, but take many times as long on a CPU. To build it, install GCC or clang, then install "
            f"optiacts again with pip's --force-reinstall --no-cache-dir. Looked in {', '.join(map(str, folders))}"
        )
    newest = (
        built[0] if named else max(built, key=lambda path: path.stat().st_mtime)
    )  # an editable install and `make native` both make one
    try:
        library = _declared(ctypes.CDLL(str(newest)))
    except (OSError, AttributeError) as error:
        return f"{newest} does not load: {error}"
    wanted = os.environ.get("OPTIACTS_CPU_LEVEL")
    if wanted:
        _use_level(library, wanted, "OPTIACTS_CPU_LEVEL")
    return library


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the signatures of csrc/optiacts.h; ``AttributeError`` if it is that of another version."""
    address, size, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    pattern, number = ctypes.c_uint32, ctypes.c_float
    rows = [address, size]  # and the distance of its rows
    signatures: dict[str, list[Any]] = {
        "optiacts_best_level": [],
        "optiacts_level": [],
        "optiacts_use_level": [count],
        "optiacts_has_threads": [],
        "optiacts_huge_pages": [address, size],
        "optiacts_pack": [count, address, address, size, size, pattern, pattern, count],
        "optiacts_backward": [count, *4 * [address], size, size, address, count],
        "optiacts_gated_forward": [count, *rows, *rows, *3 * [address], size, size, number, number, number, count],
        "optiacts_gated_backward": [count, *4 * [address], *rows, *rows, size, size, address, count],
        "optiacts_norm_any_bad": [address, address, number, number, number, size],
        "optiacts_norm_statistics": [count, *4 * [address], number, count, *3 * [address], size, size, count],
        "optiacts_norm_workspace": [size, count],
        "optiacts_norm_backward": [
            *[count, address, count, address, count],
            *4 * [address],
            *[count, address, address, size, address],
            *[count, count, address, address, address],
            *[size, size, address, count],
        ],
        "optiacts_chain_backward": [address],
        "optiacts_excess": [count, address, size, number, count],
        "optiacts_pack_dropped": [address, address, size, size, count],
        "optiacts_scale_kept": [count, *3 * [address], size, size, number, count],
        "optiacts_dropped_backward": [count, *4 * [address], size, size, address, number, number, count],
        "optiacts_dropped_gated_backward": [
            *[count, *4 * [address], *rows, *rows],
            *[size, size, address, number, number, count],
        ],
    }
    telling = {"optiacts_norm_any_bad", "optiacts_norm_backward"}
    telling.update(name for name, arguments in signatures.items() if len(arguments) < 2)
    telling -= {"optiacts_chain_backward"}
    for function, arguments in signatures.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = count if function in telling else None
    library.optiacts_norm_workspace.restype = size
    library.optiacts_excess.restype = ctypes.c_double
    return library


def _use_level(library: ctypes.CDLL, wanted: str, argument: str) -> None:
    if wanted not in LEVELS:
        raise ValueError(f"{argument} must be one of {', '.join(LEVELS)}; got {wanted!r}")
    if library.optiacts_use_level(LEVELS.index(wanted)):
        best = LEVELS[library.optiacts_best_level()]
        raise ValueError(f"{argument} must be at most {best} on this machine; got {wanted!r}")


_in_forked_child = False


def _note_fork() -> None:
    """An OpenMP runtime believes its threads to be alive in the child, and would wait for them for ever."""
    global _in_forked_child
    _in_forked_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
