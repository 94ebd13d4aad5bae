"""From tensors to launches: layouts, the size of a word of bits, the grid, the device.

Nothing here waits for the GPU or tunes anything, and the current stream is used, so calls can be captured in a
CUDA graph once each kernel has been compiled by a first call. Triton compiles a variant for tensors that are not
16-byte aligned by itself.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from optiacts import replay
from optiacts.backends.triton import release
from optiacts.backends.triton.decode import slope
from optiacts.backends.triton.elementary import VENDOR
from optiacts.backends.triton.kernels import backward_kernel, forward_kernel, scale_kept_kernel
from optiacts.backends.triton.start import Constants, start
from optiacts.backends.triton.values import value
from optiacts.curves import Curve, get
from optiacts.packing import packed_shape

# The kinds of GPU on which our kernel may compute the forward of a curve that has an expression for it, in one pass
# with the bits. `make gpu-check` compares it with PyTorch's over every 16-bit and every float32 input. The others run
# PyTorch's op and then a kernel that packs the bits: always right, one more read of x.
FUSING = frozenset(("cuda", "interpreted"))
# Not to flush subnormal numbers, as PyTorch's forwards do not. Before 3.6 nobody could ask for it.
_SUBNORMALS = {"enable_reflect_ftz": False} if release() >= (3, 6) else {}

BYTES_PER_PROGRAM = 4096  # of each tensor: two 16-byte accesses per thread
WARPS = 4
LARGEST = torch.finfo(torch.float32).max


def fused(curve: Curve, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the forward is ours: on a kind of GPU in ``FUSING``, unless it was found unlike PyTorch's.

    That depends on versions: the erf of CUDA 13.5 differs in the last bit from that of CUDA 13.0, and Triton brings
    its own. So the first-use proof compares the two, and calls ``unfuse`` where they differ.
    """
    if VENDOR not in FUSING or curve.triton is None:
        return False
    return not _unlike or (curve.name, dtype, device) not in _unlike


def unfuse(curve: Curve, dtype: torch.dtype, device: torch.device) -> bool:
    """Leaves the forward to PyTorch's op; whether it was ours."""
    was_ours = fused(curve, dtype, device)
    _unlike.add((curve.name, dtype, device))
    replay.forget()
    return was_ours


_unlike: set[tuple[str, torch.dtype, torch.device]] = set()


def forward(x: Tensor, y: Tensor, curve: Curve) -> Tensor:
    """Writes the output of contiguous ``x`` to contiguous ``y``, which may be ``x``; the packed bits."""
    bits = x.new_empty(packed_shape(x.shape), dtype=torch.uint8)
    _forward(x, y, bits, curve, fused=True)
    return bits


def pack(x: Tensor, curve: Curve) -> Tensor:
    """The packed side bits of contiguous ``x``."""
    bits = x.new_empty(packed_shape(x.shape), dtype=torch.uint8)
    _forward(x, x, bits, curve, fused=False)
    return bits


def _forward(x: Tensor, y: Tensor, bits: Tensor, curve: Curve, fused: bool) -> None:
    if bits.numel() == 0:
        return
    programs, sizes, tiling = _tiling(x, bits)
    constants = _forward_launch(curve.name, x.dtype, fused, tiling)
    start(forward_kernel, x.device, programs, (x, y, bits, *sizes), constants)


def backward(grad: Tensor, y: Tensor, bits: Tensor, grad_x: Tensor, curve: Curve, scale: float | None = None) -> None:
    """Writes ``grad`` * f'(x) to ``grad_x``; with a ``scale``, behind a dropout. All contiguous."""
    if y.numel() == 0:
        return
    programs, sizes, tiling = _tiling(y, bits) if curve.decoder.side_bits else _tiling_without_bits(y)
    arguments = (grad, y, bits, grad_x, *sizes, scale, scale and 1 / scale)
    start(backward_kernel, y.device, programs, arguments, _backward_launch(curve.name, y.dtype, tiling))


def pack_dropped(kept: Tensor) -> Tensor:
    """The packed bits of what contiguous bools do not keep."""
    bits = kept.new_empty(packed_shape(kept.shape), dtype=torch.uint8)
    if bits.numel():
        bytes_ = kept.view(torch.uint8)
        programs, sizes, tiling = _tiling(bytes_, bits)
        start(forward_kernel, kept.device, programs, (bytes_, bytes_, bits, *sizes), _packing(tiling))
    return bits


def scale_kept(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
    """``x * scale``, and ``x * 0`` where the bit is set. All contiguous."""
    out = torch.empty_like(x)
    if x.numel():
        programs, sizes, tiling = _tiling(x, dropped)
        start(scale_kept_kernel, x.device, programs, (x, dropped, out, *sizes, scale), tiled(tiling))
    return out


Tiling = tuple[int, int, bool]  # bits in a word, bytes of an element, whether the last word of a row is not full


def _tiling(x: Tensor, bits: Tensor) -> tuple[tuple[int], tuple[int, int, int], Tiling]:
    """The programs, the sizes (units, columns, units per row) and the tiling of a launch: see kernels.py."""
    shape, elements = x.shape, x.numel()
    columns = shape[-1] if shape else 1
    padded = columns % 8 != 0
    wide = elements % 32 == 0 and not padded and bits.data_ptr() % 4 == 0
    unit = 32 if wide else 8
    units = elements // unit if wide else bits.numel()
    tiling = unit, x.element_size(), padded
    return (programs_for(units, tiling),), (units, columns, (columns + 7) // 8), tiling


def _tiling_without_bits(x: Tensor) -> tuple[tuple[int], tuple[int, int, int], Tiling]:
    """The same of a tensor alone, as one row."""
    elements = x.numel()
    unit = 32 if elements % 32 == 0 else 8
    units = -(-elements // unit)
    tiling = unit, x.element_size(), elements % unit != 0
    return (programs_for(units, tiling),), (units, elements, units), tiling


def programs_for(units: int, tiling: Tiling, share: int = 1) -> int:
    """How many programs take so many units."""
    return -(-units // tiled(tiling, share)["UNITS"])


@functools.cache
def tiled(tiling: Tiling, share: int = 1) -> Constants:
    """The constants of a launch that tell its tile: see ``tile``."""
    unit, element_size, padded = tiling
    return Constants(tile(unit, element_size, share) | {"PADDED": padded})


@functools.cache
def _packing(tiling: Tiling) -> Constants:
    return Constants(tiled(tiling) | {"VALUE": None, "THRESHOLD": 0.5})


@functools.cache
def _forward_launch(curve: str, dtype: torch.dtype, fused: bool, tiling: Tiling) -> Constants:
    return Constants(tiled(tiling) | forward_constants(get(curve), dtype, fused))


@functools.cache
def _backward_launch(curve: str, dtype: torch.dtype, tiling: Tiling) -> Constants:
    return Constants(tiled(tiling) | backward_constants(get(curve), dtype))


def forward_constants(curve: Curve, dtype: torch.dtype, fused: bool, vendor: str = VENDOR) -> dict[str, Any]:
    """The constants and compiler options of a forward, or of packing only.

    The options make our forwards PyTorch's: its CUDA kernels are compiled with fused multiply-adds, and without
    flushing subnormal numbers to zero (which Triton's libdevice does unless told otherwise).
    """
    # of a curve without branches, an output of 0 whose gradients are 0 counts as left, or none does
    threshold = curve.threshold(dtype) if curve.decoder.side_bits else math.inf if curve.zero_is_flat else -math.inf
    constants = {"VALUE": value(curve) if fused else None, "THRESHOLD": threshold}
    return constants | {"enable_fp_fusion": True} | (_SUBNORMALS if vendor == "cuda" else {})


def backward_constants(curve: Curve, dtype: torch.dtype, vendor: str = VENDOR) -> dict[str, Any]:
    """The constants and compiler options of a backward."""
    return slope_constants(curve, dtype, vendor) | {"BITS": curve.decoder.side_bits == 1}


def slope_constants(curve: Curve, dtype: torch.dtype, vendor: str = VENDOR) -> dict[str, Any]:
    """Those of them that gated kernels take as well."""
    return {"SLOPE": slope(curve, dtype, vendor), "enable_fp_fusion": True}


def tile(unit: int, element_size: int, share: int = 1) -> dict[str, Any]:
    """The tile of a program whose words hold ``unit`` bits; of 1 / ``share`` of the usual bytes."""
    return {"UNIT": unit, "UNITS": BYTES_PER_PROGRAM // (share * unit * element_size), "num_warps": WARPS}
