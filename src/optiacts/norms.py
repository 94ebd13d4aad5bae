"""What a norm is: y = x̂ * (weight + offset) + bias, with x̂ = (x - mean) * rstd along some dimensions.

Its backward needs x̂, and from the output it is x̂ = (y - bias) / (weight + offset): good wherever the division is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from optiacts.recording import Form

# The largest |bias| / |weight| at which y still tells x̂ as well as a norm that keeps its input needs it: beyond, the
# rounding of y is too coarse beside x̂. Measured as the error of a channel's weight gradient: docs/norms.md.
_MOST_BIAS = {"wide": 4.0, "16 bits and remainder": 2.0, "16 bits": 1.0}
_SMALLEST_NORMALS = 16  # of |weight|: below, y is subnormal where x̂ is small
_RESCUED_SHARE = 64  # one channel in so many may be rescued


@dataclass(frozen=True)
class Norm(Form):
    """One kind of norm.

    Args:
        centered: LayerNorm subtracts the mean, RMSNorm does not (its mean is 0 in every formula here).
        eps: rstd = 1 / sqrt(mean((x - mean)^2) + eps).
        dims: how many trailing dimensions are normalised together.
        channels_first: normalised is dimension 1 alone; ``dims`` is 1 then.
        offset: what is added to the weight: 1 where a weight of zeros is the identity.
        remainder: whether two bits per element tell where in the rounding interval of a 16-bit output its unrounded
            value lay. What rounds on its way to the output (a norm written out in 16 bits) needs none.
    """

    centered: bool
    eps: float
    dims: int = 1
    channels_first: bool = False
    offset: float = 0.0
    remainder: bool = False

    def rows(self, tensor: Tensor) -> Tensor:
        """``tensor`` with what is normalised together in its last dimension."""
        if self.channels_first:
            return tensor.movedim(1, -1)
        return tensor.flatten(-self.dims) if self.dims > 1 else tensor

    def restored(self, rows: Tensor, like: Tensor) -> Tensor:
        """Undoes ``rows`` for a tensor of the shape of ``like``."""
        if self.channels_first:
            return rows.movedim(-1, 1)
        return rows.reshape(like.shape) if self.dims > 1 else rows

    def scale(self, weight: Tensor | None, copy: bool = False) -> Tensor | None:
        """weight + offset, flat and in the precision of the arithmetic; None is 1. A ``copy`` shares no memory."""
        if weight is None:
            return None
        wide = flat(weight, copy and not self.offset)
        return wide + self.offset if self.offset else wide

    def shift(self, bias: Tensor | None, copy: bool = False) -> Tensor | None:
        """The bias likewise; None is 0."""
        return None if bias is None else flat(bias, copy)

    def statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """mean and rstd of each row, of one element in the last dimension."""
        wide = rows.to(arithmetic(rows.dtype))
        if not self.centered:  # as norms are written out: a compiler sees that it is computed already
            return wide.new_zeros(()), (wide.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()
        mean = wide.mean(-1, keepdim=True)
        variance = (wide - mean).square().mean(-1, keepdim=True)
        return mean, (variance + self.eps).rsqrt()

    def reference(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The norm in plain operations of torch, differentiable, rounded once to the wider dtype of x and weight."""
        rows = self.rows(x)
        mean, rstd = self.statistics(rows)
        scale, shift = self.scale(weight), self.shift(bias)
        y = (rows.to(rstd.dtype) - mean) * rstd
        y = y if scale is None else y * scale
        y = y if shift is None else y + shift
        return self.restored(y, x).to(x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype))

    def bad(self, scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Which channels (bool) a ``dtype`` output does not tell well enough; None if it tells all.

        ``scale`` and ``shift`` may be those of several norms, one in each row.
        """
        if scale is None and shift is None:
            return None
        if scale is None:
            assert shift is not None
            return shift.abs() > self.limits(dtype, shift.shape[-1])[2]
        smallest, largest, most = self.limits(dtype, scale.shape[-1])
        size = scale.abs()
        bad = (size < smallest) | (size > largest)
        return bad if shift is None else bad | (shift.abs() > most * size)

    def limits(self, dtype: torch.dtype, channels: int) -> tuple[float, float, float]:
        """The smallest and the largest |scale|, and the largest |shift| / |scale|, of a channel that is not bad."""
        limits = torch.finfo(dtype)
        precision = "16 bits and remainder" if self.remainder else "16 bits"
        most = _MOST_BIAS["wide" if dtype.itemsize > 2 else precision]
        largest = limits.max / 2 / channels**0.5  # |x̂| is at most the root of the channels
        return _SMALLEST_NORMALS * limits.tiny, largest, most

    def bounds(self, dtype: torch.dtype, channels: int) -> Bounds:
        """What ``bad`` goes by."""
        smallest, largest, most = self.limits(dtype, channels)
        return Bounds(smallest, most, spread=1.0, reach=0.0, furthest=largest)

    def most_rescued(self, channels: int) -> int:
        """How many channels may be rescued; with more bad ones the norm keeps its input."""
        return channels // _RESCUED_SHARE


Statistics = tuple[Tensor, Tensor]  # the mean and rstd of each row, ``(..., 1)``


class Bounds(NamedTuple):
    """When a channel is bad, in numbers that a kernel can be given.

    Where size < smallest, away > most * size or spread * size + reach * away > furthest; size is |scale|, or 1, and
    away is |shift|, or 0.
    """

    smallest: float
    most: float
    spread: float
    reach: float
    furthest: float


class Guard(NamedTuple):
    """What watches over a weight and a bias that nobody has looked at before: see ``Norm.bad``.

    Where a channel is bad that is not rescued, ``poisoned`` (bool, a number) becomes true, and gradients NaN.
    """

    poisoned: Tensor
    bounds: Bounds


class Saved(NamedTuple):
    """What the backward of a norm goes by. Tensors are ``(..., channels)``; what is None is 1, 0 or not there.

    Args:
        kept: the output, if ``output``, or the input.
        mean: of each row, ``(..., 1)``: of a centred norm that keeps its input or has rescued channels.
        rstd: of each row, ``(..., 1)``.
        scale, shift: the weight (with its offset) and the bias, one number per channel.
        columns, rescued: the numbers of the rescued channels, and the input's columns there.
        bits: the output's remainder bits.
    """

    kept: Tensor
    mean: Tensor | None
    rstd: Tensor
    scale: Tensor | None
    shift: Tensor | None
    columns: Tensor | None
    rescued: Tensor | None
    bits: Tensor | None
    centered: bool
    output: bool


def flat(parameter: Tensor, copy: bool) -> Tensor:
    """``parameter`` with one dimension, in the precision of the arithmetic; ``copy``: never the parameter itself."""
    flat = parameter.flatten() if parameter.ndim != 1 else parameter
    if parameter.dtype in (torch.float32, torch.float64):  # the arithmetic's own
        return flat.clone() if copy else flat
    return flat.to(torch.float32)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What a norm of ``dtype`` is computed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32
