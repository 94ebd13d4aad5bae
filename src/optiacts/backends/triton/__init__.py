"""The backend for CUDA, ROCm and XPU: one kernel for each forward, one for each backward, written in Triton.

Importing this package does not load Triton; the first call does. float64 is left to the eager
backend. The decode is within 1.3 x of the least possible error in bfloat16 and float16 (see docs/gpu.md), and
the float32 one is eager's.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from optiacts.backends import eager
from optiacts.curves import ClosedForm, Curve, Unimodal
from optiacts.layouts import Order, permute, restore

name = "triton"
dtypes = frozenset((torch.float32, torch.bfloat16, torch.float16))
DEVICES = ("cuda", "xpu")  # "cuda" is ROCm's as well
TRIED = ((3, 6),)  # on a GPU; 3.4 and 3.9 compile all kernels as well: docs/gpu.md
_OLDEST = (3, 4)


def serves(curve: Curve, dtype: torch.dtype) -> bool:
    """Whether there are kernels for ``curve``: of generated coefficients, or of an expression of its own."""
    if isinstance(curve.decoder, Unimodal):
        return curve.decoder.ends is None
    return curve.decoder.triton is not None


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot serve ``device``, or None if it can."""
    if device.type not in DEVICES:
        return f"the triton backend serves CUDA, ROCm and XPU devices, not {device.type}"
    if (lack := lacking()) is not None:
        return lack
    if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def lacking() -> str | None:
    """What of Triton is not there, or None if all is."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    import triton

    if release() < _OLDEST:
        return f"triton {triton.__version__} is older than {_written(_OLDEST)}"
    return None


def release() -> tuple[int, ...]:
    """The first two numbers of Triton's version."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2]))


def state() -> str:
    """What is known of the Triton that is here, for people."""
    if (lack := lacking()) is not None:
        return lack
    import triton

    if release() in TRIED:
        return f"triton {triton.__version__} has been tried on a GPU"
    return (
        f"triton {triton.__version__} has not been tried on a GPU, as {', '.join(map(_written, TRIED))} has: "
        "a kernel serves once its first results are found to be those of plain PyTorch operations"
    )


def _written(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def unfuse(curve: Curve, dtype: torch.dtype, device: torch.device) -> bool:
    """Leaves the forward of ``curve`` to PyTorch's op, which may be all that is wrong; False if it was already."""
    try:
        from optiacts.backends.triton import launch
    except Exception:  # an unknown Triton, of which nothing can be used
        return False
    return launch.unfuse(curve, dtype, device)


def activation_forward(x: Tensor, curve: Curve, order: Order) -> tuple[Tensor, Tensor]:
    """PyTorch's own output to the bit, and the packed side bits."""
    if curve.decoder.side_bits == 0:
        return eager.activation_forward(x, curve, order)
    from optiacts.backends.triton import launch

    ordered = permute(x, order)
    dense = ordered.contiguous()
    if not launch.fused(curve, x.dtype, x.device):
        return curve.forward(x), launch.pack(dense, curve)
    y = torch.empty_like(x)
    ordered_y = permute(y, order)
    target = ordered_y if ordered_y.is_contiguous() else torch.empty_like(dense)
    bits = launch.forward(dense, target, curve)
    if target is not ordered_y:
        ordered_y.copy_(target)
    return y, bits


def activation_forward_(x: Tensor, curve: Curve, order: Order) -> Tensor:
    """Overwrites ``x`` with the output and returns the packed side bits."""
    if curve.decoder.side_bits == 0:
        return eager.activation_forward_(x, curve, order)
    from optiacts.backends.triton import launch

    ordered = permute(x, order)
    dense = ordered.contiguous()
    if not launch.fused(curve, x.dtype, x.device):
        bits = launch.pack(dense, curve)
        curve.forward_(x)
        return bits
    bits = launch.forward(dense, dense, curve)
    if dense is not ordered:
        ordered.copy_(dense)
    return bits


def activation_backward(grad: Tensor, y: Tensor, bits: Tensor, curve: Curve, scale: float | None = None) -> Tensor:
    """``grad`` * f'(x), in the dtype of ``y``."""
    if isinstance(curve.decoder, ClosedForm) and curve.decoder.backward is not None:  # PyTorch's own kernel
        return eager.activation_backward(grad, y, bits, curve, scale)
    from optiacts.backends.triton import launch

    y = y.contiguous()
    grad_x = torch.empty_like(y)
    launch.backward(grad.contiguous(), y, bits.contiguous(), grad_x, curve, scale)
    return grad_x


def gated_forward(gate: Tensor, up: Tensor, curve: Curve, order: Order = ()) -> tuple[Tensor, Tensor, Tensor]:
    """h = act(gate) * up, the slot and the packed bits. Halves of longer rows are read without a copy."""
    from optiacts.backends.triton import gated_launch

    h, slot, bits = gated_launch.gated_forward(permute(gate, order), permute(up, order), curve)
    return restore(h, order), slot, bits


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
    """Writes the gradients into ``grad_gate`` and ``grad_up``, in place where they are halves of longer rows."""
    from optiacts.backends.triton import gated_launch

    return gated_launch.gated_backward(grad, h, slot, bits, curve, grad_gate, grad_up, scale)


def pack_dropped(kept: Tensor) -> Tensor:
    """The packed bits of what a dropout did not keep, from the bools of what it kept."""
    from optiacts.backends.triton import launch

    return launch.pack_dropped(kept.contiguous())


def scale_kept(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
    """``x * scale``, and ``x * 0`` where the packed bit is set."""
    from optiacts.backends.triton import launch

    return launch.scale_kept(x.contiguous(), dropped.contiguous(), scale)
