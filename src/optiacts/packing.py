"""Planes of bits: booleans packed 8 to a byte along the last dimension, lowest bit first, in plain torch.

Several planes, such as the side bits of a gate and the "slot holds up" bits, lie side by side in the last dimension:
``(*shape[:-1], planes * ceil(shape[-1] / 8))``, so each row of bits begins at a new byte, and each plane in it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from optiacts._torch import is_fake


def packed_shape(shape: torch.Size | tuple[int, ...], planes: int = 1) -> tuple[int, ...]:
    """The shape of the packed bits of a tensor; ``(planes,)`` for 0-dim."""
    return (*shape[:-1], planes * ((shape[-1] + 7) // 8)) if shape else (planes,)


def pack(*planes: Tensor) -> Tensor:
    """Packs bool tensors of one shape into uint8 of ``packed_shape(shape, len(planes))``; the padding bits are 0."""
    return _pack(planes[0]) if len(planes) == 1 else torch.cat([_pack(flags) for flags in planes], dim=-1)


def unpack(packed: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The bool tensor of ``shape`` that was packed alone."""
    positions = torch.arange(8, dtype=torch.uint8, device=packed.device)
    flags = ((packed.unsqueeze(-1) >> positions) & 1).bool().flatten(-2)
    return flags[..., : shape[-1]] if len(shape) else flags[0]


def unpack_planes(packed: Tensor, shape: torch.Size | tuple[int, ...], planes: int) -> tuple[Tensor, ...]:
    """The bool tensors of ``shape`` that were packed together."""
    return tuple(unpack(plane, shape) for plane in packed.chunk(planes, dim=-1))


def _pack(flags: Tensor) -> Tensor:
    if flags.ndim == 0:
        flags = flags.reshape(1)
    padded = functional.pad(flags, (0, -flags.shape[-1] % 8))
    octets = padded.unflatten(-1, (padded.shape[-1] // 8, 8))
    if torch.compiler.is_compiling() or is_fake(flags):  # a sum is one kernel, which may be that of the flags as well
        positions = torch.arange(8, dtype=torch.int32, device=flags.device)
        return (octets.to(torch.int32) << positions).sum(-1, dtype=torch.int32).to(torch.uint8)
    octets = octets.view(torch.uint8)
    packed = octets[..., 0].clone(memory_format=torch.contiguous_format)
    for position in range(1, 8):
        packed |= octets[..., position] << position
    return packed
