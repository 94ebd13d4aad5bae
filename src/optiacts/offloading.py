"""Offloading of what autograd holds: each storage is moved once, however many layers share it.

``torch.autograd.graph.save_on_cpu`` copies each saved *tensor*: an output that two layers keep is copied twice, and
its sharing, which is what OptiActs saves by, is lost. Here it is the storages that are moved.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from optiacts.held.memory import is_parameter, modules_in, state_of, storage_key


class offload:  # noqa: N801 (a context manager, named as PyTorch's are)
    """Moves what autograd saves in it to ``to``, and back as backward asks for it.

        with optiacts.offload(leave=model) as moved:
            loss = model(x)
        loss.backward()
        print(moved.bytes)

    The storage of each saved tensor is copied once for all tensors in it, views included, and comes back once in a
    backward for all that ask for it. Of a storage that was changed in place between two saves each state is copied,
    so that backward sees the values that were saved; PyTorch would have raised an error. ``retain_graph``, several
    backwards and second derivatives work. Parameters, tensors on ``to`` already, small ones, tensor subclasses,
    sparse and conjugated tensors stay where they are. The context can be entered again and again.

    Args:
        to: the device to move to.
        leave: modules whose parameters and buffers stay, a ``torch.nn.Module`` or any nest of them.
        pin_memory: whether the copies on a CPU lie in pinned memory, where they need not be waited for; by default
            for tensors from CUDA.
        min_bytes: storages smaller than this stay.

    ``bytes`` and ``storages`` count what was moved away, ``returned`` the bytes that came back, since it was made.

    Raises:
        ValueError: ``min_bytes`` is negative.
    """

    def __init__(
        self,
        to: torch.device | str = "cpu",
        leave: Any = (),
        pin_memory: bool | None = None,
        min_bytes: int = 1024,
    ) -> None:
        if min_bytes < 0:
            raise ValueError(f"min_bytes must be at least 0; got {min_bytes}")
        self.bytes = self.storages = self.returned = 0
        self._to, self._pin_memory, self._min_bytes = torch.device(to), pin_memory, min_bytes
        self._leave = leave
        self._left: set[int] = set()
        self._known: weakref.WeakValueDictionary[Hashable, _Moved] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()  # on several devices backward runs in several threads
        self._entered: list[Any] = []

    def __enter__(self) -> offload:
        self._left = {storage_key(t) for module in modules_in(self._leave) for t in state_of(module)}
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        hooks.__enter__()
        self._entered.append(hooks)
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)

    def _pack(self, tensor: Tensor) -> Any:
        if not self._moves(tensor):
            return tensor.detach()  # a saved output would hold its own node
        with self._lock:
            key = storage_key(tensor), tensor._version, _queue(tensor.device)
            moved = self._known.get(key)
            if moved is None:
                moved = self._known[key] = _Moved(tensor, self._away(tensor))
            return _Saved(tensor, moved)

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _Saved):
            return packed
        with self._lock:
            moved = packed.moved
            if moved.back is None:
                moved.back = moved.away.to(moved.device, non_blocking=moved.away.is_pinned())
                moved.asked = set()
                self.returned += moved.back.nbytes
            tensor = packed.view(moved.back)
            moved.asked.add(packed.number)
            if all(saved.number in moved.asked for saved in moved.saved):
                moved.back = None  # nobody else asks for it in this backward
            return tensor

    def _moves(self, tensor: Tensor) -> bool:
        return (
            type(tensor) is Tensor
            and tensor.layout is torch.strided
            and not self._is_there(tensor)
            and tensor.untyped_storage().nbytes() >= self._min_bytes
            and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
            and not is_parameter(tensor)
            and storage_key(tensor) not in self._left
        )

    def _is_there(self, tensor: Tensor) -> bool:
        return tensor.device.type == self._to.type and self._to.index in (None, tensor.device.index)

    def _away(self, tensor: Tensor) -> Tensor:
        flat = _flat(tensor.untyped_storage())
        pinned = flat.is_cuda if self._pin_memory is None else self._pin_memory
        self.bytes += flat.nbytes
        self.storages += 1
        copy = torch.empty(
            flat.shape, dtype=flat.dtype, device=self._to, pin_memory=pinned and self._to.type == "cpu"
        )
        return copy.copy_(flat, non_blocking=pinned)  # in order with what runs on the tensor's own stream


class _Moved:
    """A storage that was moved: where it came from, its copy there, and what came back if somebody still needs it.

    The weak reference to the storage keeps its address from being given to another one, while this is alive.
    """

    def __init__(self, tensor: Tensor, away: Tensor) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.device, self.away = tensor.device, away
        self.back: Tensor | None = None
        self.saved: weakref.WeakSet[_Saved] = weakref.WeakSet()
        self.asked: set[int] = set()
        self.numbers = 0


class _Saved:
    """One saved tensor: its place in a storage that was moved."""

    def __init__(self, tensor: Tensor, moved: _Moved) -> None:
        self.dtype, self.shape, self.stride = tensor.dtype, tensor.shape, tensor.stride()
        self.offset = tensor.storage_offset()
        self.moved, self.number = moved, moved.numbers
        moved.numbers += 1
        moved.saved.add(self)

    def view(self, flat: Tensor) -> Tensor:
        """The tensor, in the storage of ``flat``."""
        empty = torch.empty(0, dtype=self.dtype, device=flat.device)
        return empty.set_(flat.untyped_storage(), self.offset, self.shape, self.stride)


def _flat(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _queue(device: torch.device) -> Hashable:
    """What copies are queued in: one that was made in another stream is not waited for."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None
