"""From tensors to launches of the gated kernels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from optiacts.backends import eager
from optiacts.backends.triton.decode import valley
from optiacts.backends.triton.gated_kernels import gated_backward_kernel, gated_forward_kernel
from optiacts.backends.triton.launch import (
    LARGEST,
    Tiling,
    forward_constants,
    fused,
    programs_for,
    slope_constants,
    tile,
    tiled,
)
from optiacts.backends.triton.start import Constants, start
from optiacts.curves import Curve, get
from optiacts.decoders.valley import borders
from optiacts.layouts import by_rows
from optiacts.packing import packed_shape

_SHARE = 2  # of a usual tile, one part: with twice the tensors, a whole one would spill registers


def gated_forward(gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor, Tensor]:
    """h = act(gate) * up, the slot and the packed bits, all contiguous."""
    h, slot = gate.new_empty(gate.shape), gate.new_empty(gate.shape)
    bits = gate.new_empty(packed_shape(gate.shape, curve.decoder.side_bits + 1), dtype=torch.uint8)
    if gate.numel() == 0:
        return h, slot, bits
    ours = fused(curve, gate.dtype, gate.device)
    s = gate if ours else curve.forward(gate).contiguous()
    if s.dtype != gate.dtype:  # widened by autocast
        return eager.gated_forward(gate, up, curve)
    (gate, gate_stride), (up, up_stride) = by_rows(gate), by_rows(up)
    programs, sizes, tiling = _tiling(h, bits)
    arguments = (gate, up, s, h, slot, bits, *sizes, gate_stride, up_stride)
    constants = _forward_launch(curve.name, gate.dtype, ours, tiling)
    start(gated_forward_kernel, gate.device, programs, arguments, constants)
    return h, slot, bits


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
    """Writes the gradients into ``grad_gate`` and ``grad_up``, which may be halves of longer rows."""
    if h.numel() == 0:
        return
    inputs = (grad.contiguous(), h.contiguous(), slot.contiguous(), bits.contiguous())
    (gate_rows, gate_stride), (up_rows, up_stride) = by_rows(grad_gate), by_rows(grad_up)
    programs, sizes, tiling = _tiling(h, inputs[3])
    arguments = (*inputs, gate_rows, up_rows, *sizes, gate_stride, up_stride, scale, scale and 1 / scale)
    start(gated_backward_kernel, h.device, programs, arguments, _backward_launch(curve.name, h.dtype, tiling))
    for target, written in ((grad_gate, gate_rows), (grad_up, up_rows)):
        if target is not written:
            target.copy_(written)


def gated_tile(unit: int, element_size: int) -> dict[str, Any]:
    """Half a usual tile."""
    return tile(unit, element_size, _SHARE)


def gated_forward_constants(curve: Curve, dtype: torch.dtype, ours: bool, *vendor: str) -> dict[str, Any]:
    """Those of the forward, the valley's borders, and the range of normal numbers."""
    limits = torch.finfo(dtype)
    planes = curve.decoder.side_bits + 1
    more: dict[str, Any] = {"PLANES": planes, "TINY": limits.tiny, "MOST": limits.max}
    more["BORDERS"] = borders(curve, dtype) if planes == 2 else (LARGEST, -LARGEST)  # no valley
    return forward_constants(curve, dtype, ours, *vendor) | more


def gated_backward_constants(curve: Curve, dtype: torch.dtype, *vendor: str) -> dict[str, Any]:
    """Those of the backward, the valley and its upper border, and the largest number."""
    more: dict[str, Any] = {"PLANES": curve.decoder.side_bits + 1, "MOST": torch.finfo(dtype).max}
    two = curve.decoder.side_bits == 1
    more |= (
        {"VALLEY": valley(curve, dtype), "BORDER": borders(curve, dtype)[1]} if two else {"VALLEY": None, "BORDER": 0}
    )
    return slope_constants(curve, dtype, *vendor) | more


@functools.cache
def _forward_launch(curve: str, dtype: torch.dtype, ours: bool, tiling: Tiling) -> Constants:
    return Constants(tiled(tiling, _SHARE) | gated_forward_constants(get(curve), dtype, ours))


@functools.cache
def _backward_launch(curve: str, dtype: torch.dtype, tiling: Tiling) -> Constants:
    return Constants(tiled(tiling, _SHARE) | gated_backward_constants(get(curve), dtype))


def _tiling(h: Tensor, bits: Tensor) -> tuple[tuple[int], tuple[int, int, int], Tiling]:
    """The programs, the sizes (units, columns, units per row) and the tiling of a launch."""
    columns = h.shape[-1] if h.ndim else 1
    unit = 32 if columns % 32 == 0 and bits.data_ptr() % 4 == 0 else 8
    per_row = -(-columns // unit)
    units = h.numel() // columns * per_row
    tiling = unit, h.element_size(), columns % unit != 0
    return (programs_for(units, tiling, _SHARE),), (units, columns, per_row), tiling
