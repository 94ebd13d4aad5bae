"""One training step, watched: when each storage came to be and when it went, and so what lived at any moment."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from optiacts._torch import Onlooker, current_node_number
from optiacts.held.calls import Calls
from optiacts.held.fake import require_one_dtype
from optiacts.held.memory import local_tensors, storage_key

Workspace = Callable[[Any, tuple[Any, ...], Any], int]
"""The bytes that a kernel takes besides its results: of an op, its arguments and what it returned."""


_WAITS = "_c10d_functional::wait_tensor"


@dataclass
class Piece:
    """A storage: its size, what made it, in which phase of the step, and in which layer."""

    nbytes: int
    op: str
    phase: str
    where: str  # the path and class of the layer, as people read it
    shape: tuple[int, ...]
    dtype: torch.dtype
    key: int = 0


class Event(NamedTuple):
    """A piece comes (+1), goes (-1), or was only there while its op ran (0)."""

    piece: int
    change: int


@dataclass
class Timeline:
    """All that came and went, in order. ``given``: how many of the pieces were there before the step.

    ``work``: floating-point operations of products, convolutions and attention, by ``torch.utils.flop_counter``;
    ``again``: those of them that backward computed again, of checkpoints.
    """

    pieces: list[Piece] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    given: int = 0
    work: int = 0
    again: int = 0

    def levels(self) -> list[int]:
        """The bytes alive after each event; while its op runs, for what was there only then."""
        found, alive = [], 0
        for piece, change in self.events:
            size = self.pieces[piece].nbytes
            alive += size * change
            found.append(alive + size if change == 0 else alive)
        return found

    def alive(self, moment: int) -> list[int]:
        """The pieces alive after the event number ``moment``."""
        there: dict[int, None] = {}
        for piece, change in self.events[: moment + 1]:
            if change > 0:
                there[piece] = None
            elif change < 0:
                there.pop(piece, None)
        last = self.events[moment]
        return [*there, *([last.piece] if last.change == 0 else [])]

    def same_course(self, other: Timeline) -> bool:
        """Whether the same ops made and freed the same pieces in the same order, of whatever sizes."""
        if self.events != other.events:
            return False
        return all(a.op == b.op and a.phase == b.phase for a, b in zip(self.pieces, other.pieces, strict=True))


class Recorder(Onlooker):
    """Records a ``Timeline`` while it is entered; tensors that exist already are ``told`` to it.

    Storages are followed by weak references: one goes when nobody holds it any more, autograd included. It works on
    real and on fake tensors, and counts the local parts of a DTensor.

    Args:
        model: for the paths of its layers.
        workspace: what kernels take besides; nothing if left out.
        calls: follows the layers; made of ``model`` if left out.
    """

    def __init__(
        self, model: torch.nn.Module, workspace: Workspace | None = None, calls: Calls | None = None
    ) -> None:
        from torch.utils.flop_counter import flop_registry  # which imports Triton where there is one

        super().__init__()
        self._flops = flop_registry
        self.timeline = Timeline()
        self.phase = "given"
        self._over = False
        self._workspace = workspace
        self._calls = calls or Calls(model)
        self._living: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def tell(self, tensors: Iterable[Tensor], what: str) -> None:
        """``tensors`` are there before the step, and are ``what``: "parameters"."""
        for tensor in tensors:
            for plain in local_tensors(tensor):
                self._add(plain, what, "")
        self.timeline.given = len(self.timeline.pieces)

    @contextmanager
    def watching(self) -> Iterator[Recorder]:
        """Records what the code inside does, and nothing that goes afterwards."""
        with self._calls.followed(), self._resizes(), self:
            try:
                yield self
            finally:
                self._over = True

    @contextmanager
    def _resizes(self) -> Iterator[None]:
        """Storages that are emptied and filled again, as FSDP does with what it gathers: no op tells of it."""
        thread, own = threading.get_ident(), torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            result = own(storage, size)
            if threading.get_ident() == thread and storage._cdata in self._living:
                self._resized(storage._cdata, size)
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = own  # type: ignore[method-assign]

    def _waited(self, sent: Tensor, arrived: Tensor) -> None:
        """A collective's result arrives where it was sent to. A fake one is a new tensor, and stands for both."""
        if storage_key(sent) in self._living and storage_key(sent) != storage_key(arrived):
            self._resized(storage_key(sent), 0)

    def _resized(self, key: int, size: int) -> None:
        number, reference = self._living[key]
        before = self.timeline.pieces[number]
        where = self._here() or before.where
        made = replace(before, nbytes=size, phase=self.phase, where=where)
        self.timeline.pieces.append(made)
        following = len(self.timeline.pieces) - 1
        self.timeline.events += [Event(number, -1), Event(following, 1)]
        self._living[key] = (following, reference)

    def known(self, tensors: Iterable[Tensor]) -> set[int]:
        """The pieces that ``tensors`` lie in."""
        keys = {storage_key(plain) for tensor in tensors for plain in local_tensors(tensor)}
        return {self._living[key][0] for key in keys if key in self._living}

    def ran(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        name = func._schema.name
        require_one_dtype(name, args)
        if name == _WAITS and isinstance(output, Tensor):
            self._waited(args[0], output)
        where = None
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                for plain in local_tensors(value):
                    if plain.layout is torch.strided and storage_key(plain) not in self._living:
                        where = self._here() if where is None else where
                        self._add(plain, name, where)
        count = self._flops.get(getattr(func, "_overloadpacket", None))
        if count is not None:
            work = count(*args, **kwargs, out_val=output)
            self.timeline.work += work
            if self._recomputes():
                self.timeline.again += work
        if self._workspace is not None:
            size = self._workspace(func, args, output)
            if size:
                piece = Piece(size, f"{name}, workspace", self.phase, self._here(), (size,), torch.uint8)
                self.timeline.pieces.append(piece)
                self.timeline.events.append(Event(len(self.timeline.pieces) - 1, 0))

    def _recomputes(self) -> bool:
        """Whether backward runs a part of the forward: it calls modules, or makes nodes of its own."""
        return current_node_number() is not None and (bool(self._calls.where()) or torch.is_grad_enabled())

    def _here(self) -> str:
        where = self._calls.here()
        return str(where[-1]) if where else ""

    def _add(self, tensor: Tensor, op: str, where: str) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self._living:
            return
        number = len(self.timeline.pieces)
        made = Piece(storage.nbytes(), op, self.phase, where, tuple(tensor.shape), tensor.dtype, key)
        self.timeline.pieces.append(made)
        self.timeline.events.append(Event(number, 1))

        def gone(reference: Any) -> None:
            latest, _ = self._living.pop(key)
            if not self._over:
                self.timeline.events.append(Event(latest, -1))

        self._living[key] = (number, weakref.ref(storage, gone))


def envelope(levels: list[int], others: list[int], batch: int, other: int) -> tuple[tuple[float, float], ...]:
    """The largest of the lines through (batch, level) and (other, its level), as (constant, for each sample).

    Those that are the largest for no batch from 0 on are left out.
    """
    lines: dict[float, float] = {}
    for here, there in zip(levels, others, strict=True):
        slope = (there - here) / (other - batch)
        lines[slope] = max(here - slope * batch, lines.get(slope, float("-inf")))
    hull: list[tuple[float, float]] = []
    for slope, fixed in sorted(lines.items()):
        while hull and fixed >= hull[-1][0]:  # larger from 0 on
            hull.pop()
        while len(hull) > 1 and _meet((fixed, slope), hull[-2]) <= _meet(hull[-1], hull[-2]):
            hull.pop()
        hull.append((fixed, slope))
    return tuple(hull)


def _meet(steep: tuple[float, float], flat: tuple[float, float]) -> float:
    return (flat[0] - steep[0]) / (steep[1] - flat[1])
