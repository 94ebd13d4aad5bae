"""A model sharded over ranks that are not there: what one rank holds, with a process group that sends nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from optiacts.reporting.changes import layers_of
from optiacts.reporting.errors import ReportError
from optiacts.reporting.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@contextmanager
def meshed(ranks: Ranks) -> Iterator[DeviceMesh]:
    """The mesh of ``ranks``, as the first of them sees it. Collectives give tensors of the right sizes, and wait for
    nobody. ``ReportError`` where this process is a rank already.
    """
    if dist.is_initialized():
        raise ReportError("shard: a process group is initialised already; make the report in a process of its own")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend too

    dist.init_process_group("fake", rank=0, world_size=ranks.fsdp * ranks.tp, store=FakeStore())
    try:
        yield init_device_mesh("cpu", tuple(ranks), mesh_dim_names=ranks._fields)
    finally:
        dist.destroy_process_group()


def placement(ranks: Ranks, mesh: DeviceMesh) -> Callable[[torch.nn.Module], None]:
    """What makes a model what one of ``ranks`` has of it."""
    return functools.partial(shard, ranks=ranks, mesh=mesh)


def shard(model: torch.nn.Module, ranks: Ranks, mesh: DeviceMesh) -> None:
    """Shards ``model`` in place: its Linears by transformers' plan for it, then each repeated layer, and the rest.

    As PyTorch advises for FSDP2: ``fully_shard`` on every layer, and on the model.
    """
    from torch.distributed.fsdp import fully_shard  # imported when it is needed: it takes seconds

    if ranks.tp > 1:
        _parallelize(model, mesh["tp"])
    if ranks.fsdp > 1:
        for part in (*layers_of(model), model):
            fully_shard(part, mesh=mesh["fsdp"])


def _parallelize(model: Any, mesh: DeviceMesh) -> None:
    plan = getattr(model, "tp_plan", None) or {}
    if not plan:
        raise ReportError(
            f"shard: tp={mesh.size()}: {type(model).__name__} has no plan for tensor parallelism; leave tp out"
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(model.config, name, None)
        if isinstance(heads, int) and heads % mesh.size():
            raise ReportError(f"shard: tp={mesh.size()} does not divide the {heads} of {name}; give one that does")
    try:
        from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard
        from transformers.distributed.tensor_parallel import apply_tensor_parallelism
    except ImportError as error:
        raise ReportError("shard: tp needs transformers 5.20 or later: pip install -U transformers") from error
    styles: dict[str, str] = {}
    for path, module in model.named_modules():
        style = plan.get(replace_layer_number_by_wildcard(path))
        if style is not None:
            styles |= {f"{path}.{name}": style for name, _ in module.named_parameters(recurse=False)}
            styles[path] = style
    apply_tensor_parallelism(model, mesh, styles)
