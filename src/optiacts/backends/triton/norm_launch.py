"""From tensors to launches of the kernels of norms."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from optiacts.backends.triton.norm_kernels import backward_kernel, statistics_kernel, sum_kernel
from optiacts.backends.triton.start import Constants, start
from optiacts.norms import Bounds, Guard, Norm, Saved, Statistics
from optiacts.packing import packed_shape

# Of a 16-bit dtype: the bits of its mantissa, and the exponent (of a float32) at which its units stop shrinking. For
# bfloat16 that is a little early, so that a unit is a normal float32.
_UNITS = {torch.bfloat16: (7, 8), torch.float16: (10, 113)}
_SUMMING = Constants({"PARTS": 32, "COLUMNS": 64, "num_warps": 4})
_UNGUARDED = (None, Bounds(0.0, 0.0, 0.0, 0.0, 0.0))
ELEMENTS = 1024  # of a tile, if a row is not longer
ELEMENTS_PER_WARP = 256  # 8 per thread: 16 bytes of a 16-bit dtype; with 16 half as many warps fit on a processor
WARPS_PER_PROCESSOR = 16  # of the backward, one part of dw and db per program: more parts are more to write and sum


def statistics(
    x: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None, norm: Norm, known: Statistics | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean and rstd of the rows of x, which may be ``known``, and the remainder bits of y if it has some."""
    x, y = x.contiguous(), y.contiguous()
    remainder = norm.remainder and y.element_size() == 2
    if known is None:
        rstd = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        mean = torch.empty_like(rstd) if norm.centered else rstd.new_empty(())
    else:
        mean, rstd = known[0].contiguous(), known[1].contiguous()
    bits = x.new_empty(packed_shape(y.shape, 2), dtype=torch.uint8) if remainder else None
    if x.numel() == 0 or (known is not None and bits is None):
        return mean, rstd, bits
    rows, columns = rstd.numel(), x.shape[-1]
    constants = _statistics_launch(norm, y.dtype, known is not None, scale is not None, shift is not None, columns)
    arguments = (x, y, scale, shift, mean, rstd, bits, rows, columns, norm.eps)
    start(statistics_kernel, x.device, (-(-rows // constants["ROWS"]),), arguments, constants)
    return mean, rstd, bits


def backward(
    grad: Tensor, saved: Saved, dtype: torch.dtype, of_factors: torch.dtype, guard: Guard | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, in ``dtype``, of scale and of shift, in ``of_factors``: see ``triton_norm``."""
    kept, mean, rstd, scale, shift, columns, rescued, bits, centered, output = saved
    grad, kept = grad.contiguous(), kept.contiguous()
    rows, width = rstd.numel(), kept.shape[-1]
    grad_x = grad.new_empty(grad.shape, dtype=dtype)
    shifted = shift is not None or scale is None
    if grad.numel() == 0:
        nothing = rstd.new_zeros((2, width), dtype=of_factors)
        return grad_x, nothing[0], nothing[1]
    numbers = slots(columns, width, grad.device)
    extras = (mean, scale, shift, numbers, bits, guard)
    there = tuple([extra is not None for extra in extras])
    constants = _backward_launch(centered, kept.dtype, output, there, width)
    programs = max(1, WARPS_PER_PROCESSOR // constants["num_warps"]) * processors(grad.device)
    programs = min(-(-rows // constants["ROWS"]), programs)
    parts = rstd.new_empty((1 + shifted, programs, width))
    rescued = None if rescued is None else rescued.contiguous()
    poisoned, bounds = guard or _UNGUARDED
    given = (grad, kept, mean, rstd, scale, shift, numbers, rescued, bits, grad_x, parts[0], parts[-1], poisoned)
    arguments = (*given, rows, width, 0 if columns is None else len(columns), *bounds)
    start(backward_kernel, grad.device, (programs,), arguments, constants)
    sums = torch.empty((2, width), dtype=of_factors, device=grad.device)
    grid = (-(-width // _SUMMING["COLUMNS"]), 2)
    start(sum_kernel, grad.device, grid, (parts, sums, programs, width, 1 + shifted), _SUMMING)
    return grad_x, sums[0], sums[1]  # to unbind takes the host five times as long


def slots(columns: Tensor | None, width: int, device: torch.device) -> Tensor | None:
    """Of each channel its number among the rescued ones, ``columns``, or -1; None if there are none."""
    if columns is None:
        return None
    order = torch.arange(len(columns), dtype=torch.int32, device=device)
    return torch.full((width,), -1, dtype=torch.int32, device=device).index_copy_(0, columns, order)


@functools.cache
def _statistics_launch(
    norm: Norm, dtype: torch.dtype, known: bool, scaled: bool, shifted: bool, columns: int
) -> Constants:
    return Constants(statistics_constants(norm, dtype, known, scaled, shifted) | tile(columns))


@functools.cache
def _backward_launch(
    centered: bool, dtype: torch.dtype, output: bool, there: tuple[bool, ...], columns: int
) -> Constants:
    return Constants(backward_constants(centered, dtype, output, *there) | tile(columns))


def statistics_constants(norm: Norm, dtype: torch.dtype, known: bool, scaled: bool, shifted: bool) -> dict[str, Any]:
    """The constants of the statistics of a norm with a ``dtype`` output."""
    flags = {"KNOWN": known, "CENTERED": norm.centered, "REMAINDER": norm.remainder and dtype in _UNITS}
    return flags | {"SCALED": scaled, "SHIFTED": shifted} | _units(dtype)


def backward_constants(
    centered: bool,
    dtype: torch.dtype,
    output: bool,
    mean: bool,
    scaled: bool,
    shifted: bool,
    rescued: bool,
    bits: bool,
    guarded: bool,
) -> dict[str, Any]:
    """The constants of the backward of a norm that keeps a tensor of ``dtype``."""
    flags = {"CENTERED": centered, "OUTPUT": output, "MEAN": mean, "SCALED": scaled, "SHIFTED": shifted}
    return flags | {"RESCUED": rescued, "REMAINDER": bits, "GUARDED": guarded} | _units(dtype)


def tile(columns: int) -> dict[str, Any]:
    """The tile of a program: whole rows, several if they are short."""
    padded = max(triton.next_power_of_2(columns), 16)
    rows = max(1, ELEMENTS // padded)
    return {"ROWS": rows, "OCTETS": padded // 8, "num_warps": min(32, max(1, rows * padded // ELEMENTS_PER_WARP))}


def _units(dtype: torch.dtype) -> dict[str, int]:
    mantissa, lowest = _UNITS.get(dtype, (0, 0))
    return {"MANTISSA": mantissa, "LOWEST": lowest}


@functools.cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a device has."""
    if device.type == "cpu":
        return 2  # the interpreter
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", 0) or properties.max_compute_units)  # of an XPU
