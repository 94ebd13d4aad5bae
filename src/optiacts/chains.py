"""What a chain is: y = act(z), z = x̂ * weight + bias, x̂ = (x - mean) * rstd: a norm and the activation after it.

Its backward needs f'(z) and x̂. Both follow from y and the activation's side bit: f' as without a norm, then z, then
x̂ = (z - bias) / weight, good wherever the division is. Where z is badly known, near the activation's minimum, f' is
near 0, so that the sums over g f'(z) x̂ hardly see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from optiacts import curves
from optiacts._torch import once
from optiacts.decoders.inverse import inverse
from optiacts.decoders.preimage import furthest_in_closed_form
from optiacts.norms import Bounds, arithmetic, flat
from optiacts.recording import Form

# The largest |bias| / |weight| at which y still tells x̂ well enough: docs/chains.md has the measured errors.
_MOST_BIAS = {4: 4.0, 8: 4.0, 2: 2.0}  # by the bytes of an element
_SMALLEST_NORMALS = 16  # of |weight|: below, z is subnormal where x̂ is small
_FURTHEST = {torch.float16: 8.0}  # of |x̂|, beyond which outputs may fall below the numbers of their dtype
_FURTHEST_OTHERWISE = 12.0
_FURTHEST_IN_CLOSED_FORM = {torch.bfloat16: 3.0, torch.float16: 4.5}  # where z is lost bit by bit, as ELU loses it
_FURTHEST_IN_CLOSED_FORM_OTHERWISE = 7.0
_FAINTEST = 64  # smallest numbers of a dtype: a fainter output does not tell its input
_RESCUED_SHARE = 8  # one channel in so many may be rescued


@dataclass(frozen=True)
class Chain(Form):
    """One kind of norm with one activation after it.

    Args:
        norm: the norm's name, for people.
        curve: the activation's name.
        statistics: what is normalised together: ``"rows"``, the channels of a group in one sample (LayerNorm,
            RMSNorm, GroupNorm, InstanceNorm); ``"batch"``, a channel of all samples (BatchNorm in training);
            ``"given"``, nothing: mean and rstd are constants of each channel (BatchNorm in evaluation).
        eps: rstd = 1 / sqrt(variance + eps).
        dims: how many trailing dimensions the channels are; 0: dimension 1 alone.
        groups: into which the channels are divided, for ``"rows"``.
        centered: RMSNorm subtracts no mean.
        offset: what is added to the weight.
    """

    norm: str
    curve: str
    statistics: str
    eps: float
    dims: int = 0
    groups: int = 1
    centered: bool = True
    offset: float = 0.0

    def scale(self, weight: Tensor | None, copy: bool = False) -> Tensor | None:
        """weight + offset, flat, in the precision of the arithmetic; None is 1. ``copy``: never the weight itself."""
        if weight is None:
            return None
        wide = flat(weight, copy)
        return wide + self.offset if self.offset else wide

    def shift(self, bias: Tensor | None, copy: bool = False) -> Tensor | None:
        """The bias likewise; None is 0."""
        return None if bias is None else flat(bias, copy)

    def bad(self, scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Which channels (bool) a ``dtype`` output does not tell well enough; None if it tells all.

        ``scale`` and ``shift`` may be those of several norms, one in each row.
        """
        if scale is None and shift is None:
            return None
        size = torch.ones_like(shift) if scale is None else scale.abs()  # type: ignore[arg-type]
        away = torch.zeros_like(size) if shift is None else shift.abs()
        smallest, _, most = _limits(self.curve, dtype)
        lost = size * _spread(self.curve, dtype) + away > furthest_told(self.curve, dtype)
        return lost | (size < smallest) | (away > most * size)

    def limits(self, dtype: torch.dtype, channels: int = 1) -> tuple[float, float, float]:
        """The smallest and the largest |scale|, and the largest |shift| / |scale|, of what is surely not bad."""
        return _limits(self.curve, dtype)

    def bounds(self, dtype: torch.dtype, channels: int) -> Bounds:
        """What ``bad`` goes by."""
        smallest, _, most = _limits(self.curve, dtype)
        spread, furthest = _spread(self.curve, dtype), furthest_told(self.curve, dtype)
        return Bounds(smallest, most, spread, 1.0, furthest)

    def most_rescued(self, channels: int) -> int:
        """How many channels may be rescued; with more bad ones norm and activation go their own ways."""
        return channels // _RESCUED_SHARE

    def last(self, tensor: Tensor) -> bool:
        """Whether the channels of ``tensor`` lie next to each other in memory."""
        if self.dims or tensor.ndim == 2:
            return True
        if tensor.is_contiguous():
            return False
        if tensor.ndim == 4:
            return tensor.is_contiguous(memory_format=torch.channels_last)
        return tensor.movedim(1, -1).is_contiguous()

    def rows(self, tensor: Tensor, last: bool) -> Tensor:
        """``tensor`` as (samples, channels, positions), or (samples, positions, channels) if ``last``."""
        if self.dims:
            return tensor.flatten(tensor.ndim - self.dims).contiguous().flatten(0, -2).unsqueeze(1)
        shape = tensor.shape
        if last and len(shape) == 4 and tensor.is_contiguous(memory_format=torch.channels_last):  # in one step
            samples, channels, positions = shape[0], shape[1], shape[2] * shape[3]
            return tensor.as_strided((samples, positions, channels), (positions * channels, channels, 1))
        flat = tensor.unsqueeze(-1) if len(shape) == 2 else tensor.flatten(2)
        return (flat.transpose(1, 2) if last else flat).contiguous()

    def chosen(self, tensor: Tensor, columns: Tensor, last: bool) -> Tensor:
        """The channels ``columns`` of ``tensor``, as ``rows`` would have them."""
        if self.dims:
            picked = tensor.flatten(tensor.ndim - self.dims).index_select(-1, columns)
            return picked.contiguous().flatten(0, -2).unsqueeze(1)
        return self.rows(tensor.index_select(1, columns), last)

    def shaped(self, statistic: Tensor, x: Tensor) -> Tensor:
        """A mean or rstd that PyTorch's norm of x told, as ``SavedChain`` has it."""
        shape = (x.shape[1],) if self.statistics != "rows" else (-1 if self.dims else x.shape[0], self.groups)
        return statistic if statistic.shape == shape else statistic.reshape(shape)

    def taken(self, rows: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """mean and rstd of what ``rows`` made: those that the norm takes from its input."""
        parts = rows.to(arithmetic(rows.dtype))
        if self.statistics == "batch":
            axes = (0, 1 if last else 2)
        else:
            parts = parts.unflatten(2 if last else 1, (self.groups, -1))
            axes = (1, 3) if last else (2, 3)
        if self.centered:
            variance, mean = torch.var_mean(parts, axes, correction=0)
        else:
            variance = parts.square().mean(axes)
            mean = torch.zeros_like(variance)
        return mean, (variance + self.eps).rsqrt()

    def restored(self, rows: Tensor, like: Tensor, last: bool) -> Tensor:
        """Undoes ``rows`` for a tensor of the shape of ``like``."""
        channels_last = last and not self.dims
        return (rows.transpose(1, 2) if channels_last else rows).reshape(like.shape)


class SavedChain(NamedTuple):
    """What the backward of a chain goes by. y and rescued are as ``Chain.rows`` makes them.

    Args:
        y: the output.
        bits: its packed side bits.
        rstd: ``(samples, groups)``, or ``(channels,)`` where samples share it.
        scale, shift: the weight (with its offset) and the bias, one number per channel.
        mean: of the shape of ``rstd``: of a centred norm that has rescued channels.
        columns, rescued: the numbers of the rescued channels, and the input there.
        curve: the activation's name.
        statistics, centered: of ``Chain``.
        last: whether channels are the last dimension.
    """

    y: Tensor
    bits: Tensor
    rstd: Tensor
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor | None
    columns: Tensor | None
    rescued: Tensor | None
    curve: str
    statistics: str
    centered: bool
    last: bool


@once
def _limits(curve: str, dtype: torch.dtype) -> tuple[float, float, float]:
    """See ``Chain.limits``."""
    most = _MOST_BIAS[dtype.itemsize]
    largest = furthest_told(curve, dtype) / (_spread(curve, dtype) + most)
    return _SMALLEST_NORMALS * torch.finfo(dtype).tiny, largest, most


@once
def _spread(name: str, dtype: torch.dtype) -> float:
    """The largest |x̂| to expect."""
    if isinstance(curves.get(name).decoder, curves.ClosedForm):
        return _FURTHEST_IN_CLOSED_FORM.get(dtype, _FURTHEST_IN_CLOSED_FORM_OTHERWISE)
    return _FURTHEST.get(dtype, _FURTHEST_OTHERWISE)


@once
def furthest_told(name: str, dtype: torch.dtype) -> float:
    """The largest |z| on the left at which the output is still no fainter than ``_FAINTEST`` smallest numbers."""
    curve, limits = curves.get(name), torch.finfo(dtype)
    if isinstance(curve.decoder, curves.ClosedForm):
        return -furthest_in_closed_form(curve, dtype)
    # PyTorch's exponentials overflow before an output of the other dtypes becomes subnormal
    smallest = limits.smallest_normal * (limits.eps if dtype is torch.float16 else 1)
    faint = torch.tensor([-_FAINTEST * smallest], dtype=torch.float64)
    return -float(inverse(curve, faint, torch.ones(1, dtype=torch.bool)))


def loses_inputs(name: str, dtype: torch.dtype) -> bool:
    """Whether there are inputs, not so far as to make a channel bad, that an output of ``dtype`` may not tell."""
    if isinstance(curves.get(name).decoder, curves.ClosedForm):
        return not math.isinf(furthest_told(name, dtype))
    return dtype is torch.float16


def most_excess(dtype: torch.dtype, elements: int) -> float:
    """The largest sum of the squares of how far inputs lie beyond ``furthest_told``, where they are taken to lie.

    Such an input changes dx by its share of the last term: as much, in root mean square, as a rounding of ``dtype``.
    """
    return elements * (torch.finfo(dtype).eps / 2) ** 2


def why_not_converted(norm: str, name: str, dtype: torch.dtype) -> str:
    """Why conversion leaves a norm and an activation apart on tensors of ``dtype``; empty if it does not.

    A gradient must not err more than twice as much as PyTorch's own in bfloat16, and 3.5 times in float16. Beside
    PyTorch's RMSNorm, which computes in float32 and rounds once, it would: z of SiLU and Mish is as badly known
    behind it as behind other norms, which err more themselves.
    """
    reason = why_not_chained(name)
    if reason or norm != "RMSNorm" or dtype not in (torch.bfloat16, torch.float16):
        return reason
    if isinstance(curves.get(name).decoder, curves.ClosedForm):
        return ""
    times = "2.6" if dtype is torch.bfloat16 else "4.2"
    return f"in 16 bits its gradient would err up to {times} times as much as PyTorch's (optiacts.norm_activation)"


def why_not_chained(name: str) -> str:
    """Why an activation may not be chained to the norm before it; empty if it may."""
    curve = curves.get(name)
    if curve.tells_input:
        return ""
    return f"the output of {curve.base or name} does not tell its input everywhere, and so not the norm's"
