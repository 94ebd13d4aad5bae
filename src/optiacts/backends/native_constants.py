"""What the C functions take besides tensors: the thresholds and the decoder of one curve and dtype, as ctypes."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optiacts import curves
from optiacts._torch import once
from optiacts.curves import Curve
from optiacts.decoders import lines, registers, valley
from optiacts.decoders.lines import Lines
from optiacts.decoders.pieces import COUNT, FIRST, SHIFT, has_pieces, pieces
from optiacts.decoders.polynomials import DEGREE, PIECES, coefficients
from optiacts.decoders.registers import Near, Registers
from optiacts.decoders.table import slot_table
from optiacts.recording import Lasting

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of csrc/optiacts.h
IN_PIECES, IN_REGISTERS = 3, 4  # what csrc/optiacts.h calls float32 that is decoded in another way than by lines


@dataclass(frozen=True)
class Constants:
    """Those of one curve and dtype."""

    dtype: int
    planes: int  # of side bits
    first: int
    span: int
    borders: tuple[float, float, float]  # between the branches, and the two of the valley
    decoder: Lasting  # the address of
    decoder_owner: ctypes.Structure | Tensor


@once
def constants_of(curve: str, dtype: torch.dtype) -> Constants:
    known = curves.get(curve)
    decoder: ctypes.Structure | Tensor
    number = DTYPES.index(dtype)
    if dtype is not torch.float32:
        decoder = slot_table(curve, dtype)
    elif has_pieces(known):
        number, decoder = IN_PIECES, _pieces_struct(known)
    elif (held := registers.registers(curve)) is not None:
        number, decoder = IN_REGISTERS, _registers_struct(known, held)
    else:
        decoder = _lines_struct(known)
    planes = known.decoder.side_bits
    # of a curve without branches, an output of 0 whose gradients are 0 counts as left, or none does
    threshold = known.threshold(dtype) if planes else math.inf if known.zero_is_flat else -math.inf
    first, span = _left_patterns(threshold, dtype) if planes and threshold < 0 else (0, -1)
    around = valley.borders(known, dtype) if planes else (math.inf, -math.inf)
    return Constants(
        dtype=number,
        planes=planes,
        first=first,
        span=span,
        borders=(threshold, *around),
        decoder=Lasting(decoder.data_ptr() if isinstance(decoder, Tensor) else ctypes.addressof(decoder)),
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


_NO_VALLEY = _ValleyStruct(-math.inf)


def _valley_struct(curve: Curve) -> _ValleyStruct:
    """That of a curve; of one without branches no slot lies in it."""
    if not curve.decoder.side_bits:
        return _NO_VALLEY
    around = valley.polynomials(curve, torch.float32)
    return _ValleyStruct(valley.borders(curve, torch.float32)[1], around.centre, around.output, around.slope)


def table_type(degree: int) -> Any:
    """Coefficients of so many powers that stand in registers."""
    return ctypes.c_float * registers.OCTAVES * (degree + 1)


def table_of(coefficients: Tensor) -> Any:
    """Coefficients [power, piece] as the C functions take them."""
    row = ctypes.c_float * coefficients.shape[1]
    return (row * len(coefficients))(*(row(*of_power) for of_power in coefficients.tolist()))


class LinesStruct(ctypes.Structure):
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


def _lines_struct(curve: Curve) -> LinesStruct:
    return lines_struct(lines.lines(curve.name), _valley_struct(curve))


def lines_struct(made: Lines, around: _ValleyStruct = _NO_VALLEY) -> LinesStruct:
    """A table as the C functions take it."""
    struct = LinesStruct(
        made.high, made.low, lines.MOST, made.first, made.count, lines.SHIFT, made.rows.data_ptr(), around
    )
    struct.rows_owner = made.rows
    return struct


class NearStruct(ctypes.Structure):
    """``optiacts_near`` of csrc/optiacts.h."""

    _fields_ = [
        *[(name, ctypes.c_float) for name in ("high", "low", "least", "most", "per_right", "per_left")],
        ("slope", table_type(registers.DEGREE)),
    ]


def near_struct(curve: Curve, near: Near) -> NearStruct:
    """What is around the minimum, as the C functions take it."""
    around = lines.minimum(curve)
    return NearStruct(*around, near.least, near.most, *near.per_branch, table_of(near.slope))


class _RegistersStruct(ctypes.Structure):
    """``optiacts_registers`` of csrc/optiacts.h."""

    _fields_ = [
        ("lines", LinesStruct),
        ("near", NearStruct),
        ("border", ctypes.c_float),
        ("lowest", ctypes.c_int32),
        ("far", table_type(registers.DEGREE)),
    ]


def _registers_struct(curve: Curve, made: Registers) -> _RegistersStruct:
    near = near_struct(curve, made.near)
    return _RegistersStruct(_lines_struct(curve), near, made.border, made.lowest, table_of(made.far))


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
