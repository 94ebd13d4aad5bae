"""How DTensors pass through our ops: any dimension may be sharded, a pending sum may not.

Registered when the first DTensor arrives, so that `import optiacts` stays light.
"""

from __future__ import annotations

import functools
from typing import Any

from optiacts import ops
from optiacts.layouts import Order, memory_order

_BITS_PER_BYTE = 8


def supports(x: Any) -> bool:
    """Whether the DTensor ``x`` can save its bits sharded like itself.

    The dimension that bits are packed along must split into whole bytes, or the parts would not make the whole.
    """
    packed = (memory_order(x) or range(x.ndim))[-1] if x.ndim else None
    parts = 1
    for placement, size in zip(x.placements, x.device_mesh.shape, strict=True):
        if placement.is_shard(packed) and packed is not None:
            parts *= size
    if parts > 1 and x.shape[packed] % (_BITS_PER_BYTE * parts):
        return False
    _register()
    return True


@functools.cache
def _register() -> None:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

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
