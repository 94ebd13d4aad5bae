"""One forward, watched: which storages autograd holds afterwards, which op of which layer holds each, and
where the activations' outputs went."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from optiacts._torch import Onlooker, is_wrapped_number, node_number, saved_in
from optiacts.held import activations
from optiacts.held.calls import Call, Calls, Where, describe
from optiacts.held.fake import require_one_dtype
from optiacts.held.memory import HeldTensor, SavedTensors, is_parameter, local_tensors, state_keys, storage_key


class Holder(NamedTuple):
    """A node of the autograd graph that holds a storage: its number, the op it differentiates, and its layer."""

    node: int
    op: str
    where: Where

    def __str__(self) -> str:
        return f"{self.op} in {describe(self.where)}"


@dataclass
class HeldStorage:
    """A storage that autograd holds, and by whom."""

    key: int
    nbytes: int
    holders: list[Holder] = field(default_factory=list)


@dataclass
class Activated:
    """One evaluation of an activation: by a module (``call`` is its own) or by a function (``call`` encloses it)."""

    name: str
    call: Call
    is_module: bool
    input_key: int
    output: StorageWeakRef  # weak, but it keeps the storage's identity from being given to another one
    output_key: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    consumers: list[str] = field(default_factory=list)
    takers: list[str] = field(default_factory=list)  # the modules that they are part of, by path

    def owns(self, holder: Holder, storage: HeldStorage) -> bool:
        """Whether it is this evaluation itself that holds ``storage`` through ``holder``."""
        if self.is_module:
            return any(call.number == self.call.number for call in holder.where)
        return (
            storage.key in (self.input_key, self.output_key)
            and activations.is_node(holder.op)
            and holder.where[-1:] == (self.call,)
        )


@dataclass
class Trace:
    """What one forward left behind."""

    storages: dict[int, HeldStorage]
    activated: list[Activated]
    output: Any

    @property
    def bytes(self) -> int:
        """The saved bytes, as ``optiacts.saved_memory`` counts them."""
        return sum(storage.nbytes for storage in self.storages.values())


def trace(curve_of: activations.CurveOf, model: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Trace:
    """Runs ``model(*args, **kwargs)`` once and records what autograd holds, and who holds it.

    Args:
        curve_of: tells the activations among the modules.
        model: a module, or a function that calls modules; on real or on fake tensors.
        args, kwargs: its inputs.
    """
    calls = Calls(model, curve_of)
    record, watch = SavedTensors(calls.where), Watch(calls)
    with calls.followed(), record, watch:
        output = model(*args, **kwargs)
    names = _node_names(output, record)
    storages: dict[int, HeldStorage] = {}
    for held, tensor in record.held(left_out=(model, args, kwargs)):
        key = storage_key(tensor)
        storage = storages.setdefault(key, HeldStorage(key, tensor.untyped_storage().nbytes()))
        number, name = names.get(id(held), (-1, "unknown op"))
        storage.holders.append(Holder(number, name, held.where))
    return Trace(storages, watch.activated, output)


def read(calls: Calls, watch: Watch, output: Any, left_out: Any) -> Trace | None:
    """The same of a forward that ran while ``calls`` was followed and ``watch`` entered, read off its graph's nodes.

    What no node reachable from ``output`` keeps is not seen. None where a node does not tell what it keeps.
    """
    keys = state_keys(left_out)
    kept: list[tuple[int, Holder, Tensor]] = []
    for number, node in _nodes(output):
        saved = saved_in(node)
        if saved is None:
            return None
        made = node_number(node)
        holder = Holder(number, _name(node), calls.where_made(made))
        kept += [(made, holder, s.data) for s in saved if s.unpack_hook is None and _is_held(s.data)]
    storages: dict[int, HeldStorage] = {}
    for _, holder, tensor in sorted(kept, key=lambda each: each[0]):
        for plain in local_tensors(tensor):
            key = storage_key(plain)
            if key not in keys:
                storage = storages.setdefault(key, HeldStorage(key, plain.untyped_storage().nbytes()))
                storage.holders.append(holder)
    return Trace(storages, watch.activated, None)


class Watch(Onlooker):
    """Records the evaluations of activations, and the ops that take their outputs."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls
        self._by_output: dict[int, Activated] = {}
        self.activated: list[Activated] = []

    def __enter__(self) -> Watch:
        self._calls.left = self._left
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._calls.left = None

    def _left(self, args: Any, output: Any) -> None:
        *around, call = self._calls.where()
        if call.curve is not None and not _is_inside(around) and args and isinstance(output, Tensor):
            self._add(call.curve, True, args[0], output)

    def ran(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        name = func._schema.name
        require_one_dtype(name, args)
        if not _is_inside(self._calls.where()):  # what an activation module does is its own
            if not _takes_no_values(name, func):
                self._consumed(name, args)
            if activations.is_op(name):
                self._add(name.partition("::")[2], False, args[0], tree_leaves(output)[0])

    def _add(self, name: str, is_module: bool, input: Tensor, output: Tensor) -> None:
        where = self._calls.where()
        call = where[-1] if where else Call(-1, "", "function")
        reference, key = StorageWeakRef(output.untyped_storage()), storage_key(output)
        found = Activated(
            name, call, is_module, storage_key(input), reference, key, tuple(output.shape), output.dtype
        )
        self.activated.append(found)
        self._by_output[key] = found

    def _consumed(self, name: str, args: Any) -> None:
        for value in tree_leaves(args):
            if isinstance(value, Tensor) and value.layout is torch.strided:
                activated = self._by_output.get(storage_key(value))
                if activated is not None:
                    where = self._calls.where()
                    activated.consumers.append(f"{name.partition('::')[2]} in {describe(where)}")
                    activated.takers += [call.path for call in where[-1:]]


def _is_inside(where: Sequence[Call]) -> bool:
    """Whether an activation module is being called."""
    return any(call.curve is not None for call in where)


def _takes_no_values(name: str, func: Any) -> bool:
    """Views, questions about a tensor, and factories of tensors like it."""
    return (
        any(returned.alias_info for returned in func._schema.returns)
        or name.startswith(("prim::", "aten::new_"))
        or name.endswith("_like")
    )


def _is_held(kept: Any) -> bool:
    """Whether it counts: a tensor that is no parameter, nor a number that an expression made one of."""
    return isinstance(kept, Tensor) and not is_parameter(kept) and not is_wrapped_number(kept)


def _nodes(output: Any) -> Iterator[tuple[int, Any]]:
    """The graph of ``output``, breadth first, with a number for each node."""
    roots = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    seen = set(roots)
    queue = list(roots)
    for number, node in enumerate(queue, 1):
        yield number, node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)


def _name(node: Any) -> str:
    return node.name().removesuffix("Backward0").removesuffix("Backward")


def _node_names(output: Any, record: SavedTensors) -> dict[int, tuple[int, str]]:
    """For the id of each held tensor: the number and the name of the graph node that holds it."""
    names: dict[int, tuple[int, str]] = {}

    for number, node in _nodes(output):
        saved = saved_in(node)
        if saved is not None:
            names |= {id(one.data): (number, _name(node)) for one in saved if isinstance(one.data, HeldTensor)}
        else:
            record.unpacked = functools.partial(_note, names, number, _name(node))
            _unpack_all(node)
    record.unpacked = None
    return names


def _note(names: dict[int, tuple[int, str]], number: int, name: str, held: HeldTensor) -> None:
    names[id(held)] = (number, name)


def _unpack_all(node: Any) -> None:
    """Reads what ``node`` saved: C++ nodes have an attribute for each tensor, Python Functions a tuple."""
    for attribute in [name for name in dir(node) if name.startswith("_saved_")] or ["saved_tensors"]:
        # One that was changed in place since it was saved raises, as backward would; its bytes are held all the same.
        with suppress(RuntimeError):
            getattr(node, attribute, None)
