"""Which DTensors pass through our ops: any dimension may be sharded, a pending sum may not.

A norm's rows must be whole on a rank. Its ops see no DTensors: each rank works on its own rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

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


def supports_norm(channels: set[int], x: Any, *parameters: Any) -> bool:
    """Whether a norm of ``x`` along the dimensions ``channels`` works on each rank's rows alone.

    Of DTensors: those whose rows are whole on a rank, with parameters that every rank has. Of plain ones it does.
    """
    given = [x, *(parameter for parameter in parameters if parameter is not None)]
    if not any(map(_is_dtensor, given)):
        return True
    if not all(map(_is_dtensor, given)) or any(t.device_mesh != x.device_mesh for t in given):
        return False
    whole = all(p.is_replicate() for parameter in given[1:] for p in parameter.placements)
    return whole and all(
        p.is_replicate() or (type(p).__name__ == "Shard" and p.dim not in channels) for p in x.placements
    )


class Rows(NamedTuple):
    """How the rows of a norm are shared out to ranks, each of which computes with its own."""

    mesh: Any
    placements: tuple[Any, ...]

    def local(self, tensor: Any) -> Any:
        """This rank's rows of a DTensor; of anything else, itself."""
        if not _is_dtensor(tensor):
            return tensor
        return tensor.redistribute(self.mesh, self.placements).to_local()

    def parameter(self, tensor: Any) -> Any:
        """A parameter, whose gradient is a sum over the ranks that share the rows; None stays None."""
        return tensor.to_local(grad_placements=self._summed()) if _is_dtensor(tensor) else tensor

    def whole(self, rows: Any, shape: Any) -> Any:
        """The DTensor of this shape that consists of all ranks' rows."""
        return self._joined(rows.contiguous(), self.placements, shape)

    def total(self, part: Any) -> Any:
        """The sum over all ranks of the parts of a parameter's gradient, as pending as PyTorch leaves it."""
        return self._joined(part, self._summed(), part.shape)

    def _joined(self, local: Any, placements: Any, shape: Any) -> Any:
        from torch.distributed.tensor import DTensor

        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, self.mesh, placements, run_check=False, shape=shape, stride=stride)

    def _summed(self) -> tuple[Any, ...]:
        from torch.distributed.tensor import Partial

        return tuple(p if p.is_replicate() else Partial() for p in self.placements)


def rows_of(x: Any) -> Rows | None:
    """How the rows of ``x`` are shared out; None for what is no DTensor."""
    return Rows(x.device_mesh, x.placements) if _is_dtensor(x) else None


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
