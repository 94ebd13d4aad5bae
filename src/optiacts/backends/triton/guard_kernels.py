"""The kernel that guards the weight and the bias of chains, and of norms whose backward does not do it itself."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def guard_kernel(
    scale_pointer,
    shift_pointer,
    rescued_pointer,
    lost_pointer,
    poisoned_pointer,
    channels,
    rescues,
    smallest,
    most,
    spread,
    reach,
    furthest,
    SCALED: tl.constexpr,
    SHIFTED: tl.constexpr,
    RESCUED: tl.constexpr,
    LOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """NaN in scale and shift if a channel is bad (see ``optiacts.norms.Bounds``) that is not rescued, or what is lost
    is true; either makes poisoned true. One program, which goes over the channels once, or twice."""
    found = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        there = channel < channels
        size = tl.full((BLOCK,), 1.0, tl.float32)
        away = tl.zeros((BLOCK,), tl.float32)
        if SCALED:
            size = tl.abs(tl.load(scale_pointer + channel, mask=there, other=1.0))
        if SHIFTED:
            away = tl.abs(tl.load(shift_pointer + channel, mask=there, other=0.0))
        bad = there & is_bad(size, away, smallest, most, spread, reach, furthest)
        if RESCUED:
            for number in range(0, rescues):
                bad = bad & (channel != tl.load(rescued_pointer + number))
        found = found | bad.to(tl.int32)
    poison = tl.max(found, axis=0)
    if LOST:
        poison = poison | tl.load(lost_pointer).to(tl.int32)
    if poison != 0:
        tl.store(poisoned_pointer, 1)
        nan = tl.full((BLOCK,), float("nan"), tl.float32)
        for first in range(0, channels, BLOCK):
            channel = first + tl.arange(0, BLOCK)
            if SCALED:
                tl.store(scale_pointer + channel, nan, mask=channel < channels)
            if SHIFTED:
                tl.store(shift_pointer + channel, nan, mask=channel < channels)


@triton.jit
def is_bad(size, away, smallest, most, spread, reach, furthest):
    """Whether an output does not tell its channel: see ``optiacts.norms.Bounds``."""
    return (size < smallest) | (away > most * size) | (size * spread + away * reach > furthest)
