"""Side bits: booleans packed 8 to a byte along the last dimension, lowest bit first, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def packed_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the packed bits of a tensor: ``(*shape[:-1], ceil(shape[-1] / 8))``; ``(1,)`` for 0-dim."""
    return (*shape[:-1], (shape[-1] + 7) // 8) if shape else (1,)


def pack(flags: Tensor) -> Tensor:
    """Packs a bool tensor into uint8 of ``packed_shape(flags.shape)``; the padding bits are 0."""
    if flags.ndim == 0:
        flags = flags.reshape(1)
    padded = functional.pad(flags, (0, -flags.shape[-1] % 8)).view(torch.uint8)
    octets = padded.unflatten(-1, (padded.shape[-1] // 8, 8))
    packed = octets[..., 0].clone()
    for position in range(1, 8):
        packed |= octets[..., position] << position
    return packed


def unpack(packed: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The bool tensor of ``shape`` that was packed."""
    positions = torch.arange(8, dtype=torch.uint8, device=packed.device)
    flags = ((packed.unsqueeze(-1) >> positions) & 1).bool().flatten(-2)
    return flags[..., : shape[-1]] if len(shape) else flags[0]
