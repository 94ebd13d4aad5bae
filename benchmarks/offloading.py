"""What offloading moves off the device, and what stays there: PyTorch's, TRL's and ours, with and without OptiActs.

    python -m benchmarks.offloading

A CPU stands for the device. Counted are the bytes of the copies that are made, and of the storages of the device that
the graph keeps alive besides. TRL's needs ``trl``; its streams are those of ``torch.cpu``, which do nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import optiacts
from optiacts import offloading
from optiacts.held.memory import storage_key

UNIT = 2 * 256 * 256 * 2  # a hidden tensor in 16 bits
IDS = torch.randint(0, 128, (2, 256))


class Moves:
    """What was moved, and the storages that stay."""

    def __init__(self) -> None:
        self.bytes = 0
        self.staying: dict[int, int] = {}

    def stays(self, tensor: Tensor) -> None:
        self.staying[storage_key(tensor)] = tensor.untyped_storage().nbytes()


@contextlib.contextmanager
def pytorchs(moves: Moves, state: dict[int, int]) -> Iterator[None]:
    """``torch.autograd.graph.save_on_cpu`` copies every saved tensor, weights too; those are not counted."""

    def pack(tensor: Tensor) -> Tensor:
        if storage_key(tensor) not in state:
            moves.bytes += tensor.nbytes
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def trls(streams: bool) -> Callable[[Moves, dict[int, int]], Any]:
    """TRL's ``activation_offloading``."""

    @contextlib.contextmanager
    def context(moves: Moves, state: dict[int, int]) -> Iterator[None]:
        from trl.models.activation_offloading import OffloadActivations

        with mock.patch("torch.accelerator.current_accelerator", lambda: torch.device("cpu")):
            hooks = OffloadActivations(use_pin_memory=False, use_streams=streams)
        hooks.param_storages = set(state.values())
        nothing = {name: lambda self, *args: None for name in ("synchronize", "wait_event", "wait_stream")}
        with contextlib.ExitStack() as stack:
            for name, method in nothing.items():
                stack.enter_context(mock.patch.object(torch.cpu.Stream, name, method, create=True))
            with hooks:
                yield
        for tensor, moved, *_ in hooks.tracker.values():
            if moved:
                moves.bytes += tensor.nbytes
            elif storage_key(tensor) not in state:
                moves.stays(tensor)

    return context


@contextlib.contextmanager
def ours(moves: Moves, state: dict[int, int]) -> Iterator[None]:
    """``optiacts.offload``."""
    with mock.patch.object(offloading.offload, "_is_there", lambda self, tensor: False):
        moving = optiacts.offload()
        moving._pin_memory = False
        with moving:
            moving._left = set(state)
            yield
    moves.bytes = moving.bytes


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    contexts: dict[str, Callable[[Moves, dict[int, int]], Any]] = {"`save_on_cpu`": pytorchs}
    if importlib.util.find_spec("trl") is not None:
        contexts["TRL's, one stream"] = trls(False)
        contexts["TRL's, with streams (its default)"] = trls(True)
    contexts["`optiacts.offload`"] = ours
    print("| | PyTorch: moved | stays | OptiActs: moved | stays |\n|---|---:|---:|---:|---:|")
    for name, context in contexts.items():
        cells = []
        for convert in (False, True):
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=128,
                hidden_size=256,
                intermediate_size=688,
                num_hidden_layers=2,
                num_attention_heads=4,
                attn_implementation="sdpa",
            )
            model = LlamaForCausalLM(config).bfloat16()
            if convert:
                optiacts.convert(model)
            moves = Moves()
            tensors = (*model.parameters(), *model.buffers())
            state = {storage_key(tensor): tensor.untyped_storage().data_ptr() for tensor in tensors}
            with context(moves, state):
                loss = model(input_ids=IDS, labels=IDS).loss
            cells += [f"{moves.bytes / UNIT:.1f}", f"{sum(moves.staying.values()) / UNIT:.1f}"]
            del loss
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
