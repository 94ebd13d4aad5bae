"""Two gloo processes on CPU, for tests of what is distributed."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2


# Forked off a server that has imported what takes seconds, and has called nothing.
FORKED = torch.multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["optiacts", "pytest", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]
)


def two_processes(check: Callable[[int], None]) -> None:
    """Runs ``check(rank)`` in both; what it raises comes out here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = FORKED.Barrier(WORLD)
    torch.multiprocessing.start_processes(_run, (port, check, done), nprocs=WORLD, start_method="forkserver")


def _run(rank: int, port: int, check: Callable[[int], None], done: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    check(rank)
    # Nobody leaves before all have arrived, and without the teardown: gloo's threads abort the process when a peer's
    # connection closes under them.
    done.wait(timeout=120)
    os._exit(0)
