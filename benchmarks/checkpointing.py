"""Checkpointing with and without OptiActs: what stays alive after a forward, and the time of a step.

    python -m benchmarks.checkpointing --pairs 20

Six decoder layers (hidden 512, intermediate 1408, 2 x 256 tokens, float32), one thread. Counted are the bytes of all
storages that were made in the forward and are alive after it, those that selective checkpointing caches included.
Times are those of the processor, forward and backward, in turn A B C ... C B A; a ratio is that to PyTorch without
checkpointing in the same round, and the bound is the upper 95 % one of their median.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import optiacts
from benchmarks.timing import bound, there_and_back
from optiacts.held.memory import storage_key

WIDTH, HIDDEN, HEADS, LAYERS, BATCH, LENGTH = 512, 1408, 8, 6, 2, 256
_MATRIX_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


class Block(nn.Module):
    """A decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down, self.act = nn.Linear(HIDDEN, WIDTH, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(self.act(self.gate(y)) * self.up(y))


def keeping_matrix_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What people write today: matrix products are kept, the rest is computed again."""
    return CheckpointPolicy.MUST_SAVE if op in _MATRIX_PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def run(model: nn.ModuleList, every: int, policy: Any, x: Tensor) -> Tensor:
    """The loss, with every ``every``-th layer checkpointed, or none for 0."""
    arguments: dict[str, Any] = {"use_reentrant": False}
    if policy is not None:
        arguments["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
    for number, layer in enumerate(model):
        x = checkpoint(layer, x, **arguments) if every and number % every == 0 else layer(x)
    return x.square().mean()


class Alive(TorchDispatchMode):
    """The storages that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage_key(tensor)] = StorageWeakRef(storage), storage.nbytes()
        return result


def alive(loss: Callable[[], Tensor], given: set[int]) -> int:
    """Bytes that are alive after the forward, ``given`` storages left out."""
    with Alive() as mode:
        kept = loss()
    gc.collect()
    total = sum(nbytes for key, (storage, nbytes) in mode.made.items() if not storage.expired() and key not in given)
    del kept
    return total


def contenders() -> dict[str, tuple[Callable[[], Tensor], set[int]]]:
    """What is compared."""
    torch.manual_seed(0)
    plain, converted = (nn.ModuleList(Block() for _ in range(LAYERS)) for _ in "ab")
    converted.load_state_dict(plain.state_dict())
    for block in converted:
        optiacts.convert(block)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    ways: dict[str, tuple[nn.ModuleList, int, Any]] = {
        "none, PyTorch": (plain, 0, None),
        "none, OptiActs": (converted, 0, None),
        "every third layer, PyTorch": (plain, 3, None),
        "every third layer, OptiActs": (converted, 3, None),
        "every second layer, PyTorch": (plain, 2, None),
        "every second layer, OptiActs": (converted, 2, None),
        "every layer": (plain, 1, None),
        "every layer, keeping OptiActs' ops (`checkpoint_policy`)": (converted, 1, optiacts.checkpoint_policy),
        "every layer, keeping matrix products, PyTorch": (plain, 1, keeping_matrix_products),
    }
    return {
        name: (functools.partial(run, model, every, policy, x), {storage_key(p) for p in (x, *model.parameters())})
        for name, (model, every, policy) in ways.items()
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    found = contenders()
    sizes = {name: alive(loss, given) for name, (loss, given) in found.items()}
    seconds = there_and_back({name: loss for name, (loss, _) in found.items()}, pairs)
    first = next(iter(found))
    print("| checkpointed | alive after the forward, MB | of PyTorch's | time | bound |\n|---|---:|---:|---:|---:|")
    for name in found:
        ratios = [own / base for own, base in zip(seconds[name], seconds[first], strict=True)]
        size = f"{sizes[name] / 1e6:.1f} | {sizes[name] / sizes[first]:.0%}"
        print(f"| {name} | {size} | {statistics.median(ratios):.2f} | {bound(ratios):.2f} |")


if __name__ == "__main__":
    main()
