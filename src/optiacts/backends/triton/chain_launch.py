"""From tensors to launches of the kernels of chains.

Where a norm takes statistics there are two passes, with the sums over what is normalised together between them: each
decodes grad and y. Given statistics, and rows that fit into a program, take one.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from optiacts.backends.triton.chain_kernels import chain_kernel, excess_kernel, whole_rows_kernel
from optiacts.backends.triton.decode import preimage
from optiacts.backends.triton.elementary import VENDOR
from optiacts.backends.triton.launch import BYTES_PER_PROGRAM, WARPS
from optiacts.backends.triton.norm_launch import WARPS_PER_PROCESSOR, processors, slots
from optiacts.backends.triton.start import Constants, start
from optiacts.backends.triton.values import slope_of_input
from optiacts.chains import SavedChain
from optiacts.curves import get

WIDEST = 128  # channels of a program, where they lie next to each other
LONGEST_ROW = 16384  # that a program keeps in registers
ELEMENTS_PER_WARP = 512  # of whole rows
PROGRAMS_PER_PROCESSOR = 8


def backward(grad: Tensor, saved: SavedChain, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, in ``dtype``, of scale and of shift."""
    y, rstd, last = saved.y, saved.rstd, saved.last
    samples, channels, positions = (y.shape[0], y.shape[2], y.shape[1]) if last else y.shape
    grad, y = grad.contiguous(), y.contiguous()
    grad_x = torch.empty(grad.shape, dtype=dtype, device=grad.device)
    if not y.numel():
        return grad_x, rstd.new_zeros(channels), rstd.new_zeros(channels)
    numbers, rescued = slots(saved.columns, channels, grad.device), saved.rescued
    scale = rstd.new_ones(channels) if saved.scale is None else saved.scale
    shift = rstd.new_zeros(channels) if saved.shift is None else saved.shift
    bits = saved.bits.contiguous() if saved.bits.numel() else None
    mean = None if saved.mean is None else saved.mean.contiguous()
    rescued = None if rescued is None else rescued.contiguous()
    given = (grad, y, bits, rstd.contiguous(), mean, scale, shift, numbers, rescued, grad_x)
    rescues = 0 if saved.columns is None else saved.columns.numel()
    in_rows = saved.statistics == "rows"
    if in_rows and last and positions == 1 and rstd.shape[1] == 1 and channels <= LONGEST_ROW:
        constants = _rows_launch(saved.curve, y.dtype, saved.centered, channels)
        return grad_x, *_whole_rows(given, samples, channels, rescues, constants)
    if last and not in_rows:
        samples, positions = 1, samples * positions
    tiling, programs, splits, span = _plan(
        samples, channels, positions, y.element_size(), last, processors(grad.device)
    )
    groups = rstd.shape[1] if in_rows else 1
    sums = rstd.new_empty((4 if in_rows else 2, samples, channels, splits))
    sizes = (samples, channels, positions, groups, rescues, span)
    elements = positions * (channels // groups if in_rows else samples)

    def run(together: Tensor | None, adds: bool, writes: bool) -> None:
        constants = _launch(saved.curve, y.dtype, saved.centered, saved.statistics, last, tiling, adds, writes)
        arguments = (*given, sums, together, *sizes, 1 / elements)
        start(chain_kernel, grad.device, (programs, splits), arguments, constants)

    one_pass = saved.statistics == "given"
    run(None, adds=True, writes=one_pass)
    by_channel = sums[:2].sum((1, 3))
    if not one_pass:
        together = sums[2:].view(2, samples, groups, -1).sum(3) if in_rows else by_channel
        run(together, adds=False, writes=True)
    return grad_x, by_channel[1], by_channel[0]  # to unpack a tensor takes the host far longer


@functools.cache
def _plan(
    samples: int, channels: int, positions: int, element_size: int, last: bool, processors: int
) -> tuple[tuple[tuple[str, int], ...], int, int, int]:
    """The tile; how many programs there are, how many parts each one's positions are cut into, and of what length."""
    tiling = tile(channels, positions, element_size, last)
    step = tiling["OUTER"] if last else tiling["UNITS"] * tiling["UNIT"]
    if last:
        programs = samples * _up(channels, tiling["UNITS"] * tiling["UNIT"])
    else:
        programs = _up(samples * channels, tiling["OUTER"])
    steps = _up(positions, step)
    span = _up(steps, min(steps, _up(PROGRAMS_PER_PROCESSOR * processors, programs))) * step
    return tuple(tiling.items()), programs, _up(positions, span), span


def _up(number: int, divisor: int) -> int:
    """Triton's own ``cdiv`` and ``next_power_of_2`` take the host longer than a launch."""
    return -(-number // divisor)


def excess(z: Tensor, furthest: float) -> Tensor:
    """The sum of the squares of how far elements lie left of ``-furthest``."""
    dense = z.is_contiguous() or (z.ndim == 4 and z.is_contiguous(memory_format=torch.channels_last))
    z = z if dense else z.contiguous()
    block = BYTES_PER_PROGRAM // z.element_size()
    programs = max(1, min(_up(z.numel(), block), PROGRAMS_PER_PROCESSOR * processors(z.device)))
    sums = torch.empty(programs, dtype=torch.float32, device=z.device)
    start(excess_kernel, z.device, (programs,), (z, sums, z.numel(), furthest), _excess_launch(block))
    return sums.sum()


def _whole_rows(
    given: tuple[Any, ...], rows: int, columns: int, rescues: int, constants: Constants
) -> tuple[Tensor, Tensor]:
    grad = given[0]
    programs = max(1, WARPS_PER_PROCESSOR // constants["num_warps"]) * processors(grad.device)
    programs = min(_up(rows, constants["OUTER"]), programs)
    sums = torch.empty((2, columns, programs), dtype=torch.float32, device=grad.device)
    start(whole_rows_kernel, grad.device, (programs,), (*given, sums, rows, columns, rescues), constants)
    by_channel = sums.sum(2)
    return by_channel[1], by_channel[0]


@functools.cache
def _launch(
    curve: str, dtype: torch.dtype, centered: bool, statistics: str, last: bool, tiling: Any, adds: bool, writes: bool
) -> Constants:
    passes = {"SUMS": adds, "GRADIENT": writes, "STATISTICS": statistics, "LAST": last, "CENTERED": centered}
    return Constants(curve_constants(curve, dtype) | passes | dict(tiling))


@functools.cache
def _rows_launch(curve: str, dtype: torch.dtype, centered: bool, columns: int) -> Constants:
    return Constants(curve_constants(curve, dtype) | {"CENTERED": centered} | rows_tile(columns))


@functools.cache
def _excess_launch(block: int) -> Constants:
    return Constants({"BLOCK": block, "num_warps": WARPS})


def curve_constants(name: str, dtype: torch.dtype, vendor: str = VENDOR) -> dict[str, Any]:
    """What the kernels take of a curve, and a compiler option."""
    curve = get(name)
    functions = {"INPUT": preimage(curve, dtype, vendor), "SLOPE": slope_of_input(curve)}
    return functions | {"enable_fp_fusion": True}


def tile(channels: int, positions: int, element_size: int, last: bool) -> dict[str, Any]:
    """The tile of a program: see chain_kernels.py."""
    elements, width = BYTES_PER_PROGRAM // element_size, channels if last else positions
    unit = _unit(width)
    units = min(1 << (_up(width, unit) - 1).bit_length(), (WIDEST if last else elements) // unit)
    return {"UNIT": unit, "UNITS": units, "OUTER": elements // (units * unit), "num_warps": WARPS}


def rows_tile(columns: int) -> dict[str, Any]:
    """The tile of a program that takes whole rows, several if they are short."""
    unit = _unit(columns)
    units = 1 << (_up(columns, unit) - 1).bit_length()
    outer = max(1, 1024 // (units * unit))
    warps = min(32, max(1, outer * units * unit // ELEMENTS_PER_WARP))
    return {"UNIT": unit, "UNITS": units, "OUTER": outer, "num_warps": warps}


def _unit(width: int) -> int:
    return 32 if width % 32 == 0 else 8
