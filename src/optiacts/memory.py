"""What autograd really holds after a forward: the distinct storages of its saved tensors, in bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from optiacts.sharding import local_tensors


@dataclass(frozen=True)
class SavedStorage:
    """One storage that autograd holds: its size, and the first saved tensor that lies in it."""

    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class SavedMemory:
    """The storages held after one forward, largest first. ``output`` keeps the graph, and so them, alive."""

    storages: tuple[SavedStorage, ...]
    output: Any

    @property
    def bytes(self) -> int:
        """The sum of their sizes."""
        return sum(storage.nbytes for storage in self.storages)


def saved_memory(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> SavedMemory:
    """Runs ``fn(*args, **kwargs)`` once and measures what autograd holds for its backward.

    Counted are the storages of all tensors saved by the graph that is still alive when ``fn`` returns, each
    storage once, however many tensors or views share it. Parameters are left out, and so are the buffers of
    every module that is ``fn``, owns it as a method, or is among its arguments. Works on real and on fake
    tensors (build the model inside ``torch._subclasses.FakeTensorMode``), which takes no memory at all, and
    on compiled functions; of a DTensor the local part counts. A Function that hides tensors outside
    ``save_for_backward`` is not seen.

    Args:
        fn: a module or function.
        args, kwargs: its arguments.

    Returns:
        ``SavedMemory``: ``.bytes``, ``.storages``, and the ``.output`` of ``fn``.
    """
    saved: list[weakref.ref[_Held]] = []

    def pack(tensor: Tensor) -> _Held:
        held = _Held(tensor.detach(), _is_parameter(tensor))  # detached: a saved output would hold its own node
        saved.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        output = fn(*args, **kwargs)

    state = (t for module in _modules((fn, args, kwargs)) for t in _state(module))
    left_out = {_storage_key(plain) for t in state for plain in local_tensors(t)}
    storages: dict[int, SavedStorage] = {}
    for reference in saved:
        held = reference()
        if held is None or held.is_parameter:
            continue
        for tensor in local_tensors(held.tensor):
            key = _storage_key(tensor)
            if key not in left_out and key not in storages:
                nbytes = tensor.untyped_storage().nbytes()
                storages[key] = SavedStorage(nbytes, tuple(tensor.shape), tensor.dtype, tensor.device)
    largest_first = sorted(storages.values(), key=lambda storage: -storage.nbytes)
    return SavedMemory(tuple(largest_first), output)


class _Held:
    """A saved tensor in the keeping of the graph: it goes when the graph lets go of it."""

    __slots__ = ("__weakref__", "is_parameter", "tensor")

    def __init__(self, tensor: Tensor, is_parameter: bool) -> None:
        self.tensor = tensor
        self.is_parameter = is_parameter


def _storage_key(tensor: Tensor) -> int:
    """The identity of a storage. Fake storages have no address, but an identity of the C++ object."""
    return tensor.untyped_storage()._cdata


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)


def _modules(values: Any) -> Iterator[torch.nn.Module]:
    for value in tree_leaves(values):
        owner = getattr(value, "__self__", value)
        if isinstance(owner, torch.nn.Module):
            yield owner


def _state(module: torch.nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
