"""One training step, watched: when each storage came to be and when it went, and so what lived at any moment."""

from __future__ import annotations

import bisect
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optiacts._torch import current_node_number, looking_on, next_node_number
from optiacts.held.memory import local_tensors, storage_key

Workspace = Callable[[Any, tuple[Any, ...], Any], int]
"""The bytes that a kernel takes besides its results: of an op, its arguments and what it returned."""


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

    ``work``: floating-point operations of products, convolutions and attention, by ``torch.utils.flop_counter``.
    """

    pieces: list[Piece] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    given: int = 0
    work: int = 0

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


class Recorder(TorchDispatchMode):
    """Records a ``Timeline`` while it is entered; tensors that exist already are ``told`` to it.

    Storages are followed by weak references: one goes when nobody holds it any more, autograd included. It works on
    real and on fake tensors, and counts the local parts of a DTensor.

    Args:
        model: for the paths of its layers.
        workspace: what kernels take besides; nothing if left out.
    """

    def __init__(self, model: torch.nn.Module, workspace: Workspace | None = None) -> None:
        from torch.utils.flop_counter import flop_registry  # which imports Triton where there is one

        super().__init__()
        self._flops = flop_registry
        self.timeline = Timeline()
        self.phase = "given"
        self._over = False
        self._workspace = workspace
        self._places = _Places(model)
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
        with self._places.followed(), self:
            try:
                yield self
            finally:
                self._over = True

    def known(self, tensors: Iterable[Tensor]) -> set[int]:
        """The pieces that ``tensors`` lie in."""
        keys = {storage_key(plain) for tensor in tensors for plain in local_tensors(tensor)}
        return {self._living[key][0] for key in keys if key in self._living}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name
        where = None
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                for plain in local_tensors(value):
                    if plain.layout is torch.strided and storage_key(plain) not in self._living:
                        where = self._places.here() if where is None else where
                        self._add(plain, name, where)
        count = self._flops.get(getattr(func, "_overloadpacket", None))
        if count is not None:
            self.timeline.work += count(*args, **(kwargs or {}), out_val=output)
        if self._workspace is not None:
            size = self._workspace(func, args, output)
            if size:
                piece = Piece(size, f"{name}, workspace", self.phase, self._places.here(), (size,), torch.uint8)
                self.timeline.pieces.append(piece)
                self.timeline.events.append(Event(len(self.timeline.pieces) - 1, 0))
        return output

    def _add(self, tensor: Tensor, op: str, where: str) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self._living:
            return
        number = len(self.timeline.pieces)
        made = Piece(storage.nbytes(), op, self.phase, where, tuple(tensor.shape), tensor.dtype, key)
        self.timeline.pieces.append(made)
        self.timeline.events.append(Event(number, 1))

        def gone(reference: Any) -> None:
            del self._living[key]
            if not self._over:
                self.timeline.events.append(Event(number, -1))

        self._living[key] = (number, weakref.ref(storage, gone))


class _Places:
    """Which layer runs: in forward the innermost module, in backward the one whose op is differentiated."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._names = {id(m): f"{path or 'the model'} ({type(m).__name__})" for path, m in model.named_modules()}
        self._stack: list[str] = []
        self._numbers: list[int] = [0]  # of graph nodes: from each on, the innermost module is the name beside it
        self._inside: list[str] = [""]

    def here(self) -> str:
        number = current_node_number()
        if self._stack or number is None:
            return self._stack[-1] if self._stack else ""
        return self._inside[bisect.bisect_right(self._numbers, number) - 1]

    @contextmanager
    def followed(self) -> Iterator[None]:
        thread = threading.get_ident()

        def enter(module: torch.nn.Module, args: Any) -> None:
            if threading.get_ident() == thread:
                self._stack.append(self._names.get(id(module), type(module).__name__))
                self._note()

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread and self._stack:
                self._stack.pop()
                self._note()

        before = register_module_forward_pre_hook(looking_on(enter))
        after = register_module_forward_hook(looking_on(leave), always_call=True)  # recomputations stop by raising
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _note(self) -> None:
        if current_node_number() is None:  # a recomputation's nodes come from within backward: the stack tells
            self._numbers.append(next_node_number())
            self._inside.append(self._stack[-1] if self._stack else "")


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
