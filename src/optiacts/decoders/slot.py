"""Reading the slot of a gated product. What it holds, and why, is in docs/gated.md ("What the slot holds")."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from optiacts.curves import Curve
from optiacts.decoders import valley
from optiacts.packing import unpack_planes


class Factors(NamedTuple):
    """What was saved of a gated product, told apart: s = act(gate) and up in float32 (float64), the rest bool."""

    s: Tensor
    up: Tensor
    left: Tensor  # where gate lies on the left branch
    in_valley: Tensor  # where the slot is gate itself


def read(h: Tensor, slot: Tensor, bits: Tensor, curve: Curve, scale: float | None = None) -> Factors:
    """The two factors of ``h``, one from the slot, the other from ``h`` and the one.

    With a ``scale`` ``h`` has gone through a dropout that multiplied it by that much.
    """
    *side, holds_up = unpack_planes(bits, h.shape, curve.decoder.side_bits + 1)
    left = side[0] if side else (slot == 0) & ~holds_up
    in_valley = torch.zeros_like(left)
    known = slot  # act(gate) or up
    if side:
        in_valley = (slot <= valley.borders(curve, slot.dtype)[1]) & ~holds_up
        known = torch.where(in_valley, curve.forward(slot), slot)
    other = _other_factor(h, known, 1.0 if scale is None else 1 / scale)
    known = known.to(other.dtype)
    return Factors(torch.where(holds_up, other, known), torch.where(holds_up, known, other), left, in_valley)


def _other_factor(h: Tensor, kept: Tensor, inverse: float) -> Tensor:
    """The factor that makes ``h`` with the kept one. An overflowed h counts as the largest number.

    Where the kept factor is 0, so is the other one, and the product gives it its sign. The quotient is held
    below overflow too: h / s may be one rounding beyond the up that it stands for.
    """
    most = torch.finfo(h.dtype).max
    wide = torch.promote_types(h.dtype, torch.float32)
    h, kept = h.to(wide).clamp(-most, most) * inverse, kept.to(wide)
    return torch.where(kept == 0, h * kept, h / kept).clamp_(-most, most)
