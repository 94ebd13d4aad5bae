"""What autograd really holds after a forward: the distinct storages of its saved tensors, in bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

_SHOWN = 8  # rows of a printed SavedMemory


@dataclass(frozen=True)
class SavedStorage:
    """One storage that autograd holds: its size, and the first saved tensor that lies in it."""

    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, repr=False)
class SavedMemory:
    """The storages held after one forward, largest first. ``output`` keeps the graph, and so them, alive.

    ``print`` shows their sum, their number, and the shapes and dtypes that hold most.
    """

    storages: tuple[SavedStorage, ...]
    output: Any

    @property
    def bytes(self) -> int:
        """The sum of their sizes."""
        return sum(storage.nbytes for storage in self.storages)

    def __repr__(self) -> str:
        groups: dict[tuple[torch.dtype, tuple[int, ...]], list[int]] = {}
        for storage in self.storages:
            groups.setdefault((storage.dtype, storage.shape), []).append(storage.nbytes)
        largest_first = sorted(groups.items(), key=lambda group: -sum(group[1]))
        rows = [
            (_size(sum(sizes)), f"{len(sizes)} x", str(dtype).removeprefix("torch."), str(list(shape)))
            for (dtype, shape), sizes in largest_first[:_SHOWN]
        ]
        rest = [size for _, sizes in largest_first[_SHOWN:] for size in sizes]
        if rest:
            rows.append((_size(sum(rest)), f"{len(rest)} x", "others", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{_size(self.bytes)} held for backward in {len(self.storages)} storages"]
        for size, count, dtype, shape in rows:
            lines.append(f"  {size:>{widths[0]}}  {count:>{widths[1]}} {dtype:{widths[2]}} {shape}".rstrip())
        return "\n".join(lines)


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
    record = SavedTensors()
    with record:
        output = fn(*args, **kwargs)

    storages: dict[int, SavedStorage] = {}
    for _, tensor in record.held(left_out=(fn, args, kwargs)):
        nbytes = tensor.untyped_storage().nbytes()
        storages.setdefault(
            storage_key(tensor), SavedStorage(nbytes, tuple(tensor.shape), tensor.dtype, tensor.device)
        )
    largest_first = sorted(storages.values(), key=lambda storage: -storage.nbytes)
    return SavedMemory(tuple(largest_first), output)


class SavedTensors:
    """Sees every tensor that autograd saves while it is entered (``with record: ...``).

    Args:
        where: called at each save; what it returns is kept as ``HeldTensor.where``.
    """

    def __init__(self, where: Callable[[], Any] = lambda: None) -> None:
        self._where = where
        self._references: list[weakref.ref[HeldTensor]] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self.unpacked: Callable[[HeldTensor], None] | None = None

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def held(self, left_out: Any = ()) -> Iterator[tuple[HeldTensor, Tensor]]:
        """What a graph still holds, and the plain tensors in it; no parameters and no state of ``left_out``."""
        keys = state_keys(left_out)
        for reference in self._references:
            held = reference()
            if held is not None and not held.is_parameter:
                yield from ((held, plain) for plain in local_tensors(held.tensor) if storage_key(plain) not in keys)

    def _pack(self, tensor: Tensor) -> HeldTensor:
        made = tensor.grad_fn is not None  # a saved output would hold its own node; of fake ones this takes long
        held = HeldTensor(tensor.detach() if made else tensor, self._where(), is_parameter(tensor))
        self._references.append(weakref.ref(held))
        return held

    def _unpack(self, held: HeldTensor) -> Tensor:
        if self.unpacked is not None:
            self.unpacked(held)
        return held.tensor


class HeldTensor:
    """A saved tensor in the keeping of the graph: it goes when the graph lets go of it."""

    __slots__ = ("__weakref__", "is_parameter", "tensor", "where")

    def __init__(self, tensor: Tensor, where: Any, is_parameter: bool) -> None:
        self.tensor = tensor
        self.where = where
        self.is_parameter = is_parameter


def local_tensors(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a wrapper subclass (a DTensor, a quantised tensor) consists of on this rank."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])  # a DTensor names its mesh too
    return [plain for part in parts if isinstance(part, Tensor) for plain in local_tensors(part)]


def storage_key(tensor: Tensor) -> int:
    """The identity of a storage. Fake storages have no address, but an identity of the C++ object."""
    return tensor.untyped_storage()._cdata


def state_keys(values: Any) -> set[int]:
    """The storages of parameters and buffers of every module that is in ``values``, or owns a method in them."""
    state = (t for module in modules_in(values) for t in state_of(module))
    return {storage_key(plain) for t in state for plain in local_tensors(t)}


def _size(nbytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"


def is_parameter(tensor: Tensor) -> bool:
    """Whether it is a parameter, or a view of one."""
    return isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)


def modules_in(values: Any) -> Iterator[torch.nn.Module]:
    for value in tree_leaves(values):
        owner = getattr(value, "__self__", value)
        if isinstance(owner, torch.nn.Module):
            yield owner


def state_of(module: torch.nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
