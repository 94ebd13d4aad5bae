"""The norms in plain torch operations: any device, any floating dtype; the kernels are measured by it.

Tensors are ``(..., channels)``; mean and rstd are ``(..., 1)``; scale and shift, the weight and the bias, have one
number per channel, in the precision of the arithmetic. What is ``None`` is 1, 0 or not there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts.chains import Chain
from optiacts.norms import Norm, Saved, Statistics
from optiacts.packing import pack, unpack_planes

name = "eager"

_EXPONENT = 0x7F800000  # the bits of a float32 that tell it


def layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``torch.nn.functional.layer_norm`` computes, with mean and rstd: by the op that it calls."""
    return torch.native_layer_norm(x, shape, weight, bias, eps)


def norm_statistics(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm,
    known: Statistics | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean and rstd of x, and the remainder bits of y if it has some: see ``remainder``."""
    mean, rstd = norm.statistics(x) if known is None else known
    if not norm.remainder or y.element_size() > 2:
        return mean, rstd, None
    return mean, rstd, remainder(unrounded(x, mean, rstd, scale, shift), y)


def unrounded(x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """The output in the precision of the arithmetic."""
    exact = (x - mean) * rstd
    exact = exact if scale is None else exact * scale
    return exact if shift is None else exact + shift


def remainder(exact: Tensor, y: Tensor) -> Tensor:
    """In which quarter of the rounding interval of ``y`` the exact value lay: two bits, in two planes."""
    return packed(quarters(exact, y))


def quarters(exact: Tensor, y: Tensor) -> Tensor:
    """The quarters in numbers from 0 to 3.

    Where the output is further away than half a unit in the last place, the nearest quarter is taken.
    """
    position = (exact - y.float()) / unit(y)
    return ((position * 4).floor() + 2).clamp(0, 3).to(torch.uint8)


def packed(quarters: Tensor) -> Tensor:
    """Such numbers in two planes of bits."""
    return pack((quarters & 1).bool(), (quarters >> 1).bool())


def refined(y: Tensor, bits: Tensor | None) -> Tensor:
    """``y`` in the precision of the arithmetic, moved to the middle of its quarter."""
    if bits is None:
        return y.double() if y.dtype is torch.float64 else y.float()
    low, high = unpack_planes(bits, y.shape, 2)
    middle = torch.where(high, torch.where(low, 0.375, 0.125), torch.where(low, -0.125, -0.375))
    return y.float() + middle.float() * unit(y)


def unit(y: Tensor) -> Tensor:
    """The unit in the last place of a 16-bit number, float32; of 0, that of the smallest numbers."""
    limits = torch.finfo(y.dtype)
    power = (y.float().view(torch.int32) & _EXPONENT).view(torch.float32)  # of 2, at most |y|
    return power.clamp(min=limits.tiny) * limits.eps  # not in place: compilers would put what is a view together


def any_bad(scale: Tensor | None, shift: Tensor | None, norm: Norm | Chain, dtype: torch.dtype) -> bool:
    """Whether any channel is bad: see ``optiacts.norms.Norm.bad``."""
    bad = norm.bad(scale, shift, dtype)
    return bad is not None and bool(bad.any())


def guarded(
    scale: Tensor | None,
    shift: Tensor | None,
    rescued: Tensor | None,
    norm: Norm | Chain,
    dtype: torch.dtype,
    poisoned: Tensor,
    lost: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """``scale`` and ``shift``, of which one is given: of NaN if a channel is bad that is not rescued.

    So they are if ``lost`` (bool, a number) holds. Either is noted in ``poisoned`` (bool, a number). They are new
    tensors, or, from a kernel, those given, which are contiguous and nobody else's.
    """
    bad = norm.bad(scale, shift, dtype)
    assert bad is not None
    poison = (bad if rescued is None else bad.index_fill(0, rescued, False)).any()
    poison = poison if lost is None else poison | lost
    poisoned.logical_or_(poison)  # in place: what a CUDA graph replays goes there
    scale, shift = (None if factor is None else factor.masked_fill(poison, torch.nan) for factor in (scale, shift))
    return scale, shift


GUARDS = False  # whether ``norm_backward`` takes a ``Guard`` as well


def norm_backward(
    grad: Tensor, saved: Saved, dtype: torch.dtype, of_factors: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx in ``dtype``, of the shape of ``grad``; dw and db in ``of_factors``, or the precision of the arithmetic."""
    if saved.output:
        x_hat = normalised(saved)
    else:
        x_hat = saved.kept.to(saved.rstd.dtype)
        x_hat = (x_hat if saved.mean is None else x_hat - saved.mean) * saved.rstd
    dx, by_scale, by_shift = gradients(grad.to(saved.rstd.dtype), x_hat, saved.rstd, saved.scale, saved.centered)
    of_factors = of_factors or by_scale.dtype
    return dx.to(dtype).contiguous(), by_scale.to(of_factors), by_shift.to(of_factors)


def normalised(saved: Saved) -> Tensor:
    """From an output x̂ = (y - shift) / scale, of the rescued channels (x - mean) * rstd."""
    scale, columns, rstd = saved.scale, saved.columns, saved.rstd
    moved = refined(saved.kept, saved.bits).to(rstd.dtype)
    moved = moved if saved.shift is None else moved - saved.shift
    if columns is None:
        return moved if scale is None else moved / scale
    assert saved.rescued is not None
    x_hat = moved if scale is None else moved / scale.index_fill(0, columns, 1.0)  # no 0 / 0, whose gradient is NaN
    exact = saved.rescued.to(rstd.dtype)
    return x_hat.index_copy(-1, columns, (exact if saved.mean is None else exact - saved.mean) * rstd)


def gradients(
    grad: Tensor, x_hat: Tensor, rstd: Tensor, scale: Tensor | None, centered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx = rstd (w g - mean(w g) - x̂ mean(w g x̂)), the first mean of a centered norm only; dw = Σ g x̂; db = Σ g."""
    scaled = grad if scale is None else grad * scale
    dx = scaled - x_hat * (scaled * x_hat).mean(-1, keepdim=True)
    dx = dx - scaled.mean(-1, keepdim=True) if centered else dx
    rows = tuple(range(grad.ndim - 1))
    by_scale = (grad * x_hat).sum(rows) if rows else grad * x_hat
    return rstd * dx, by_scale, grad.sum(rows) if rows else grad
