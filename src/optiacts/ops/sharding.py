"""Which DTensors pass through our ops: any dimension may be sharded, a pending sum may not."""

from __future__ import annotations

from typing import Any

from optiacts.layouts import memory_order
from optiacts.ops.library import register_shardings

_BITS_PER_BYTE = 8


def supports(x: Any) -> bool:
    """Whether the DTensor ``x`` can save its bits sharded like itself.

    The dimension that bits are packed along must split into whole bytes, or the parts would not make the whole.
    """
    packed = (memory_order(x) or range(x.ndim))[-1] if x.ndim else None
    parts = 1
    for placement, size in zip(x.placements, x.device_mesh.shape, strict=True):
        # a pending sum may be scattered along any dimension, if that is cheapest
        if packed is not None and (placement.is_shard(packed) or placement.is_partial()):
            parts *= size
    if parts > 1 and x.shape[packed] % (_BITS_PER_BYTE * parts):
        return False
    register_shardings()
    return True


def supports_gated(gate: Any, up: Any = None) -> bool:
    """Whether the gated product of ``gate`` and ``up``, or of the halves of ``gate``, can save what it needs.

    Of DTensors, that is; of anything else it can. The two planes of bits lie side by side
    in every shard, so they cannot be resharded along the packed dimension: all parts must have their places from
    the start. The halves of a sharded row lie on different ranks.
    """
    tensors = (gate,) if up is None else (gate, up)
    if not any(_is_dtensor(t) for t in tensors):
        return True
    if not all(_is_dtensor(t) for t in tensors) or any(p.is_partial() for t in tensors for p in t.placements):
        return False
    if up is None:
        return not any(p.is_shard(gate.ndim - 1) for p in gate.placements) and supports(gate.chunk(2, dim=-1)[0])
    return (gate.placements, gate.device_mesh) == (up.placements, up.device_mesh) and supports(gate)


def like(grad: Any, saved: Any) -> Any:
    """``grad`` with the placements of ``saved``, so that no op reshards saved bits to fit the gradient."""
    if not _is_dtensor(grad) or grad.placements == saved.placements:
        return grad
    return grad.redistribute(saved.device_mesh, saved.placements)


def is_dtensor_type(kind: type) -> bool:
    """Whether ``kind`` is DTensor; asked by name, since importing it takes long."""
    return kind.__name__ == "DTensor" and kind.__module__ == "torch.distributed.tensor"


def _is_dtensor(x: Any) -> bool:
    return is_dtensor_type(type(x))
