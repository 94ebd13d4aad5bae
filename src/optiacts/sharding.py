"""How DTensors pass through our ops: any dimension may be sharded, a pending sum may not.

Registered when the first DTensor arrives, so that `import optiacts` stays light.
"""

from __future__ import annotations

import functools
from typing import Any

from optiacts import ops
from optiacts._torch import register_sharding
from optiacts.layouts import Order, memory_order

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
    _register()
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


@functools.cache
def _register() -> None:
    from torch.distributed.tensor import Replicate, Shard

    def bits_dim(dim: int, order: Order) -> int:
        return list(order).index(dim) if order else dim

    @register_sharding(ops.activation_forward)
    def forward(x: Any, curve: str, order: Order) -> Any:
        whole = ([Replicate(), Replicate()], [Replicate(), None, None])
        parts = [([Shard(d), Shard(bits_dim(d, order))], [Shard(d), None, None]) for d in range(len(x.shape))]
        return [whole, *parts]

    @register_sharding(ops.activation_forward_)
    def forward_(x: Any, curve: str, order: Order) -> Any:
        whole = ([Replicate()], [Replicate(), None, None])
        parts = [([Shard(bits_dim(d, order))], [Shard(d), None, None]) for d in range(len(x.shape))]
        return [whole, *parts]

    @register_sharding(ops.activation_backward)
    def backward(grad: Any, y: Any, bits: Any, curve: str, order: Order) -> Any:
        whole = ([Replicate()], [Replicate(), Replicate(), Replicate(), None, None])
        parts = [
            ([Shard(d)], [Shard(d), Shard(d), Shard(bits_dim(d, order)), None, None]) for d in range(len(y.shape))
        ]
        return [whole, *parts]

    # Gated ops get their tensors in memory order: bits are sharded in the same dimension as the rest.
    @register_sharding(ops.gated_forward)
    def gated_forward(gate: Any, up: Any, curve: str) -> Any:
        return [([p] * 3, [p, p, None]) for p in (Replicate(), *map(Shard, range(len(gate.shape))))]

    @register_sharding(ops.gated_backward)
    def gated_backward(grad: Any, h: Any, slot: Any, bits: Any, curve: str) -> Any:
        return [([p] * 2, [p, p, p, p, None]) for p in (Replicate(), *map(Shard, range(len(h.shape))))]

    @register_sharding(ops.gated_backward_fused)
    def gated_backward_fused(grad: Any, h: Any, slot: Any, bits: Any, curve: str) -> Any:
        return [([p], [p, p, p, p, None]) for p in (Replicate(), *map(Shard, range(len(h.shape) - 1)))]
