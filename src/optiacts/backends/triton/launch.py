"""From tensors to launches: layouts, the size of a word of bits, the grid, the device.

Nothing here waits for the GPU or tunes anything, and the current stream is used, so calls can be captured in a
CUDA graph once each kernel has been compiled by a first call. Triton compiles a variant for tensors that are not
16-byte aligned by itself.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
from torch import Tensor

from optiacts.backends.triton import release
from optiacts.backends.triton.decode import slope
from optiacts.backends.triton.elementary import VENDOR
from optiacts.backends.triton.kernels import backward_kernel, forward_kernel, scale_kept_kernel
from optiacts.backends.triton.values import value
from optiacts.curves import Curve
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
    grid, sizes, tiling = _tiling(x, bits)
    with on_device(x.device):
        forward_kernel[grid](x, y, bits, *sizes, **tiling, **forward_constants(curve, x.dtype, fused))


def backward(grad: Tensor, y: Tensor, bits: Tensor, grad_x: Tensor, curve: Curve, scale: float | None = None) -> None:
    """Writes ``grad`` * f'(x) to ``grad_x``; with a ``scale``, behind a dropout. All contiguous."""
    if y.numel() == 0:
        return
    grid, sizes, tiling = _tiling(y, bits) if curve.decoder.side_bits else _tiling_without_bits(y)
    with on_device(y.device):
        backward_kernel[grid](
            *(grad, y, bits, grad_x, *sizes, scale, scale and 1 / scale),
            **tiling,
            **backward_constants(curve, y.dtype),
        )


def pack_dropped(kept: Tensor) -> Tensor:
    """The packed bits of what contiguous bools do not keep."""
    bits = kept.new_empty(packed_shape(kept.shape), dtype=torch.uint8)
    if bits.numel():
        bytes_ = kept.view(torch.uint8)
        grid, sizes, tiling = _tiling(bytes_, bits)
        with on_device(kept.device):
            forward_kernel[grid](bytes_, bytes_, bits, *sizes, **tiling, VALUE=None, THRESHOLD=0.5)
    return bits


def scale_kept(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
    """``x * scale``, and ``x * 0`` where the bit is set. All contiguous."""
    out = torch.empty_like(x)
    if x.numel():
        grid, sizes, tiling = _tiling(x, dropped)
        with on_device(x.device):
            scale_kept_kernel[grid](x, dropped, out, *sizes, scale, **tiling)
    return out


def _tiling(x: Tensor, bits: Tensor) -> tuple[tuple[int], tuple[int, int, int], dict[str, Any]]:
    """The grid, the sizes (units, columns, units per row) and the constants of a launch: see kernels.py."""
    columns = x.shape[-1] if x.ndim else 1
    padded = columns % 8 != 0
    wide = x.numel() % 32 == 0 and not padded and bits.data_ptr() % 4 == 0
    unit = 32 if wide else 8
    units = x.numel() // unit if wide else bits.numel()
    tiling = tile(unit, x.element_size()) | {"PADDED": padded}
    return (triton.cdiv(units, tiling["UNITS"]),), (units, columns, (columns + 7) // 8), tiling


def _tiling_without_bits(x: Tensor) -> tuple[tuple[int], tuple[int, int, int], dict[str, Any]]:
    """The same of a tensor alone, as one row."""
    unit = 32 if x.numel() % 32 == 0 else 8
    units = triton.cdiv(x.numel(), unit)
    tiling = tile(unit, x.element_size()) | {"PADDED": x.numel() % unit != 0}
    return (triton.cdiv(units, tiling["UNITS"]),), (units, x.numel(), units), tiling


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


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` the current one, if it is not; Triton launches on the current device and its stream."""
    if device.type == "cpu":  # interpreted
        return contextlib.nullcontext()
    of = torch.cuda if device.type == "cuda" else torch.get_device_module(device)
    return contextlib.nullcontext() if device.index == of.current_device() else of.device(device)
