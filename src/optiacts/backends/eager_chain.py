"""Chains, a norm and the activation after it, in plain torch operations: any device, any floating dtype.

y is ``(samples, channels, positions)``, or ``(samples, positions, channels)`` if ``last``: see ``chains.SavedChain``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from optiacts import curves
from optiacts.chains import Chain, SavedChain
from optiacts.curves import ClosedForm, Curve
from optiacts.decoders import branch, decode
from optiacts.decoders.preimage import preimage
from optiacts.packing import pack, packed_shape

name = "eager"


def forward(z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The activation's own output, and the packed side bits of ``rows(z)``."""
    return curve.forward(z), side_bits(rows(z), curve)


def forward_(z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The same, with the output in the place of z."""
    bits = side_bits(rows(z), curve)
    return curve.forward_(z), bits


def side_bits(rows: Tensor, curve: Curve) -> Tensor:
    """The packed side bits of the activation's input."""
    if not curve.decoder.side_bits:
        return rows.new_empty(packed_shape(rows.shape, 0), dtype=torch.uint8)
    return pack(curve.left(rows))


def excess(z: Tensor, furthest: float) -> Tensor:
    """The sum of the squares of how far elements lie left of ``-furthest``, a number of z's device; no NaN counts."""
    below = (-furthest - z.to(torch.promote_types(z.dtype, torch.float32))).clamp_(min=0)
    return below.nan_to_num_(nan=0.0, posinf=torch.inf).square_().sum()


def statistics(rows: Tensor, kind: Chain, last: bool) -> tuple[Tensor, Tensor]:
    """mean and rstd of what ``rows`` made."""
    return kind.taken(rows, last)


def _slope(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    """f'(z). That of a closed form belongs to the z that is found, not to all that have this output."""
    if isinstance(curve.decoder, ClosedForm):
        return curve.decoder.slope(y.to(torch.promote_types(y.dtype, torch.float32)), left)
    return decode(y, left, curve)


Read = Callable[[Tensor, Tensor, Curve], Tensor]  # from outputs and the branch


def chain_backward(
    grad: Tensor, saved: SavedChain, dtype: torch.dtype, slope: Read = _slope, preimage: Read = preimage
) -> tuple[Tensor, Tensor, Tensor]:
    """dx in ``dtype`` and of the shape of ``grad``; dw and db in the precision of the arithmetic.

    With g = grad * f'(z): dw = Σ g x̂, db = Σ g, dx = rstd (w g - mean(w g) - x̂ mean(w g x̂)). The means are over what
    is normalised together; without the first of a norm that is not centered, without both where the statistics are
    given. All sums are of each channel in each sample first.
    """
    curve, rstd, scale, last = curves.get(saved.curve), saved.rstd, saved.scale, saved.last
    left = branch(saved.y, saved.bits, curve)
    g = grad.to(rstd.dtype) * slope(saved.y, left, curve).to(rstd.dtype)
    x_hat = normalised(saved, preimage(saved.y, left, curve))
    positions = 1 if last else 2
    by_shift, by_scale = g.sum(positions), (g * x_hat).sum(positions)  # (samples, channels)

    def spread(of_channel: Tensor) -> Tensor:
        return of_channel.unsqueeze(positions) if of_channel.ndim == 2 else _along(of_channel, last)

    w = rstd.new_ones(by_shift.shape[1]) if scale is None else scale.to(rstd.dtype)
    dx = g * spread(w)
    if saved.statistics != "given":
        product = dx.new_zeros(()) if saved.statistics == "given" else _mean(w * by_scale, saved)
        dx = dx - x_hat * spread(product)
        if saved.centered:
            dx = dx - spread(_mean(w * by_shift, saved))
    dx = dx * spread(_of_channels(rstd, saved))
    return dx.to(dtype).contiguous(), by_scale.sum(0), by_shift.sum(0)


def normalised(saved: SavedChain, z: Tensor) -> Tensor:
    """x̂ = (z - shift) / scale, of the rescued channels (x - mean) * rstd."""
    scale, columns, rstd, last = saved.scale, saved.columns, saved.rstd, saved.last
    x_hat = z.to(rstd.dtype)
    x_hat = x_hat if saved.shift is None else x_hat - _along(saved.shift.to(rstd.dtype), last)
    if scale is not None:
        w = scale.to(rstd.dtype)
        x_hat = x_hat / _along(w if columns is None else w.index_fill(0, columns, 1.0), last)
    if columns is None:
        return x_hat
    assert saved.rescued is not None
    positions = 1 if last else 2

    def of_rescued(statistic: Tensor) -> Tensor:
        chosen = _of_channels(statistic, saved).index_select(-1, columns)
        return chosen.unsqueeze(positions) if chosen.ndim == 2 else _along(chosen, last)

    exact = saved.rescued.to(rstd.dtype)
    exact = exact if saved.mean is None else exact - of_rescued(saved.mean)
    return x_hat.index_copy(2 if last else 1, columns, exact * of_rescued(rstd))


def _along(of_channel: Tensor, last: bool) -> Tensor:
    return of_channel if last else of_channel.unsqueeze(-1)


def _channels(saved: SavedChain) -> int:
    return saved.y.shape[2 if saved.last else 1]


def _of_channels(statistic: Tensor, saved: SavedChain) -> Tensor:
    """A statistic of each group as one of each of its channels."""
    if statistic.ndim == 1:
        return statistic
    return statistic.repeat_interleave(_channels(saved) // statistic.shape[1], dim=1)


def _mean(sums: Tensor, saved: SavedChain) -> Tensor:
    """The mean over what is normalised together, for each channel, from the sums of each channel in each sample."""
    positions = saved.y.shape[1 if saved.last else 2]
    if saved.statistics == "batch":
        return sums.sum(0) / (saved.y.shape[0] * positions)
    groups = saved.rstd.shape[1]
    of_group = sums.unflatten(1, (groups, -1)).sum(2) / (positions * (sums.shape[1] // groups))
    return _of_channels(of_group, saved)
