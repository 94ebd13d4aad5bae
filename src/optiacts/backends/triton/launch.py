"""From tensors to launches: layouts, the size of a word of bits, the grid, the device.

Nothing here waits for the GPU or tunes anything, and the current stream is used, so calls can be captured in a
CUDA graph once each kernel has been compiled by a first call. Triton compiles a variant for tensors that are not
16-byte aligned by itself.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton
from torch import Tensor

from optiacts.backends.triton.decode import decoder
from optiacts.backends.triton.kernels import backward_kernel, forward_kernel
from optiacts.backends.triton.values import VALUES
from optiacts.bits import packed_shape
from optiacts.curves import Curve

# For each kind of GPU, the curves whose forward is computed by our kernel, in one pass with the bits. It must
# equal PyTorch's own to the bit, which `make gpu-check` verifies over every 16-bit and many float32 inputs. The
# other curves run PyTorch's op and then a kernel that packs the bits: always right, one more read of x.
FUSED_FORWARDS = {"cuda": frozenset(VALUES), "hip": frozenset()}

BYTES_PER_PROGRAM = 4096  # of each tensor: two 16-byte accesses per thread
WARPS = 4


def fused(curve: str) -> bool:
    """Whether the forward of ``curve`` is ours on this build of PyTorch."""
    return curve in FUSED_FORWARDS["hip" if torch.version.hip else "cuda"]


def forward(x: Tensor, y: Tensor, curve: Curve) -> Tensor:
    """Writes the output of contiguous ``x`` to contiguous ``y``, which may be ``x``; the packed bits."""
    bits = x.new_empty(packed_shape(x.shape), dtype=torch.uint8)
    _forward(x, y, bits, VALUES[curve.name], curve)
    return bits


def pack(x: Tensor, curve: Curve) -> Tensor:
    """The packed side bits of contiguous ``x``."""
    bits = x.new_empty(packed_shape(x.shape), dtype=torch.uint8)
    _forward(x, x, bits, None, curve)
    return bits


def _forward(x: Tensor, y: Tensor, bits: Tensor, value: Any, curve: Curve) -> None:
    if bits.numel() == 0:
        return
    grid, sizes, constants = _tiling(x, bits)
    with _on(x.device):
        forward_kernel[grid](
            x, y, bits, *sizes, VALUE=value, THRESHOLD=curve.threshold(x.dtype), **constants, **forward_options()
        )


def backward(grad: Tensor, y: Tensor, bits: Tensor, grad_x: Tensor, curve: Curve) -> None:
    """Writes ``grad`` * f'(x) to ``grad_x``. All contiguous."""
    if bits.numel() == 0:
        return
    grid, sizes, constants = _tiling(y, bits)
    with _on(y.device):
        backward_kernel[grid](grad, y, bits, grad_x, *sizes, DECODER=decoder(curve.name, y.dtype), **constants)


def _tiling(x: Tensor, bits: Tensor) -> tuple[tuple[int], tuple[int, int, int], dict[str, Any]]:
    """The grid, the sizes (units, columns, units per row) and the constants of a launch: see kernels.py."""
    columns = x.shape[-1] if x.ndim else 1
    padded = columns % 8 != 0
    wide = x.numel() % 32 == 0 and not padded and bits.data_ptr() % 4 == 0
    unit = 32 if wide else 8
    units = x.numel() // unit if wide else bits.numel()
    per_program = BYTES_PER_PROGRAM // (unit * x.element_size())
    constants = {"UNIT": unit, "UNITS": per_program, "PADDED": padded, "num_warps": WARPS}
    return (triton.cdiv(units, per_program),), (units, columns, (columns + 7) // 8), constants


@functools.cache
def forward_options() -> dict[str, Any]:
    """Compiler options that make our forwards PyTorch's: its kernels are compiled with fused multiply-adds, and
    without flushing subnormal numbers to zero (which Triton's libdevice does unless told otherwise)."""
    if torch.version.hip:
        return {}
    return {"enable_fp_fusion": True, "enable_reflect_ftz": False}


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` the current one, if it is not; Triton launches on the current device and its stream."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
