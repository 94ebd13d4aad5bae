"""Peaks of sharded steps, predicted and measured in real processes over gloo: rows for report_calibration."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from optiacts.reporting.analysis import peak_of
from optiacts.reporting.changes import checkpointed, layers_of
from optiacts.reporting.ranks import Ranks
from optiacts.reporting.sharding import shard

Observed = Callable[[nn.Module, dict[str, Tensor]], int]


class Way(NamedTuple):
    """How a model is sharded, and whether its layers are checkpointed."""

    ranks: Ranks
    checkpoint: int = 0

    def __str__(self) -> str:
        return str(self.ranks) + (", every layer checkpointed" if self.checkpoint else "")


WAYS = (Way(Ranks(fsdp=4)), Way(Ranks(tp=4)), Way(Ranks(fsdp=2, tp=2)), Way(Ranks(fsdp=2, tp=2), checkpoint=1))


def observed_in(way: Way, make: Callable[[], Any], observed: Observed) -> int:
    """What a real step takes in this process, which is one of the ranks."""
    torch.manual_seed(0)
    model, inputs = make()
    shard(model, way.ranks, init_device_mesh("cpu", tuple(way.ranks), mesh_dim_names=way.ranks._fields))
    with checkpointed(layers_of(model) if way.checkpoint else [], nullcontext):
        return observed(model, inputs)


def compared(make: Callable[[], Any], observed: Observed) -> list[tuple[str, str, int, int]]:
    """For each way: what it is, the phase of the peak, bytes predicted and measured in the first of four ranks."""
    said = []
    for way in WAYS:
        model, inputs = make()
        said.append(peak_of(model, inputs, shard=way.ranks, checkpoint=way.checkpoint))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    found, done = context.SimpleQueue(), context.Barrier(_WORLD)
    torch.multiprocessing.spawn(  # type: ignore[attr-defined]
        _run, args=(port, make, observed, found, done), nprocs=_WORLD
    )
    return [(str(way), now.phase, now.bytes, found.get()) for way, now in zip(WAYS, said, strict=True)]


_WORLD = 4


def _run(rank: int, port: int, make: Callable[[], Any], observed: Observed, found: Any, done: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=_WORLD)
    for way in WAYS:
        real = observed_in(way, make, observed)
        if rank == 0:
            found.put(real)
    # Nobody leaves before all have arrived, and without the teardown: gloo's threads abort the process when a peer's
    # connection closes under them.
    done.wait(timeout=600)
    os._exit(0)
