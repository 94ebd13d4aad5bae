"""What a call of a function of tensors does, noted as a plan: see ``optiacts.replay``.

A mode sees PyTorch's functions. Kernels, launches, and what asks for something anew each time tell the recorder of
their thread themselves. What it cannot note it refuses, and there is no plan then.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from optiacts._torch import EMPTY_ON_CPU


class Form:
    """What derives from it is a constant of a call, told apart by ``==``: it holds no tensor and never changes."""


class Address(int):
    """The address of a tensor that a plan knows."""

    register: int


class Number(int):
    """A number that is found out anew in each replay."""

    register: int


class Lasting(int):
    """The address of what stays for the rest of the process, and so may stand in a plan."""


class Plan(NamedTuple):
    """What csrc/host/plan.cpp runs."""

    steps: tuple[tuple[Any, ...], ...]
    result: tuple[Any, ...]  # a node
    registers: int
    kept: tuple[Any, ...]  # what must stay as long as the plan


class Kernel(NamedTuple):
    """A call of a kernel, by the address of what calls it with words; see ``Recorder.kernel``."""

    caller: int | None
    types: Sequence[Any]
    arguments: Sequence[Any]  # tensors where their addresses are due


substitutes: dict[str, Callable[[Tensor, Sequence[Any]], Kernel | None]] = {}
"""By the name of a function of PyTorch: what fills the memory of the tensor that it made, of what it was given.

A plan calls that kernel in its place. None where there is none for such tensors.
"""

_CONSTANT, _REGISTER, _ADDRESS, _LIST, _TUPLE = range(5)

# What tells of a tensor's form alone.
_OF_FORM = frozenset(
    "shape dtype device layout ndim is_cuda is_cpu is_meta itemsize nbytes size stride numel dim element_size "
    "is_contiguous is_floating_point is_complex get_device storage_offset".split()
)
_VIEWS = frozenset("flatten reshape view contiguous unsqueeze squeeze unflatten transpose permute detach".split())
_CASTS = frozenset(("float", "double", "half", "bfloat16", "bool", "long"))
_SAME = frozenset(("contiguous", "to", "reshape", "view_as", "detach")) | _CASTS
_SCALARS = (
    int,
    float,
    bool,
    str,
    type(None),
    type(...),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)


_FRESH = frozenset(("new_empty", "empty_like", "empty", "empty_strided"))
_FLOATS, _POINTER = (ctypes.c_float, ctypes.c_double), ctypes.c_void_p


@functools.cache
def _has_known_form(name: str) -> bool:
    """Whether the form of what a function of PyTorch gives hangs on the form of its arguments alone."""
    tags = _tags(name)
    unlike = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    return tags is not None and unlike.isdisjoint(tags)


@functools.cache
def _draws(name: str) -> bool:
    """Whether a function of PyTorch draws random numbers."""
    return torch.Tag.nondeterministic_seeded in (_tags(name) or ())


def _tags(name: str) -> set[torch.Tag] | None:
    """Those of all overloads of PyTorch's op of that name; None if there is none."""
    packet = getattr(torch.ops.aten, _OPERATORS.get(name, name), None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return None
    return {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}


def _has_tensors(index: Any) -> bool:
    return any(isinstance(part, Tensor) for part in (index if isinstance(index, (tuple, list)) else (index,)))


def _objects(nodes: Sequence[tuple[Any, ...]]) -> Iterator[int]:
    """The registers of which not only the address is taken."""
    for kind, number, _, items in nodes:
        if kind == _REGISTER:
            yield number
        yield from _objects(items)


_TWO_WAYS = {f"__{way}{name}__": name for name in ("add", "sub", "mul") for way in ("", "r")}
_OPERATORS = dict.fromkeys(_CASTS, "to") | _TWO_WAYS | {
    "__truediv__": "div", "__rtruediv__": "div", "__neg__": "neg", "__lt__": "lt", "__gt__": "gt", "__le__": "le",
    "__ge__": "ge", "__or__": "bitwise_or", "__and__": "bitwise_and", "__invert__": "bitwise_not",
}  # fmt: skip


class _RefusedError(Exception):
    """There is no plan for this."""


class Recorder(TorchFunctionMode):
    """Notes the calls of PyTorch's functions on this thread, and those of kernels: see ``kernel``."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        super().__init__()
        self.steps: list[tuple[Any, ...]] = []
        self.registers: dict[int, int] = {}  # of tensors, by their id
        self.alive: list[Any] = []  # so that no id is used again
        self.reads: list[set[int]] = []  # the registers that each step reads
        self.kept: list[Any] = []
        self.views: dict[int, int] = {}  # the registers of views, by the steps that make them
        self.starts: dict[int, int] = {}  # what views are of, by their registers
        self.refused = False
        self.draws = False  # random numbers
        self.inputs = len(arguments)
        for number, argument in enumerate(arguments):
            self.alive.append(argument)
            if isinstance(argument, Tensor):
                self.registers.setdefault(id(argument), number)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if self.refused:
            return result
        try:
            return self._note(function, args, kwargs or {}, result)
        except _RefusedError:
            self.refused = True
            return result

    def _note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = function.__self__.__name__
        if isinstance(function, torch._ops.OpOverload):
            name = function._schema.name.partition("::")[2]
            if function._schema.is_mutable:
                raise _RefusedError
        if name == "data_ptr":
            return self._address(args[0], result)
        if name in _OF_FORM or (name == "_is_view" and self._register(args[0]) >= self.inputs):
            return result
        if not _has_known_form(name) or (name == "__getitem__" and _has_tensors(args[1])):
            raise _RefusedError
        several = isinstance(result, (tuple, list))
        results = list(result) if several else [result]
        if not results or not all(isinstance(each, Tensor) for each in results):
            raise _RefusedError
        if not several and id(result) in self.registers and name in _SAME:
            return result  # it was so already
        if "out" in kwargs or (name.endswith("_") and self._register(args[0]) < self.inputs):
            raise _RefusedError  # a replay that breaks off must leave everything as it was
        self.draws = self.draws or _draws(name)
        if not several and (name in _FRESH or name in substitutes) and self._substituted(name, args, kwargs, result):
            return result
        self._add(function, args, kwargs, results, several, name in _FRESH)
        if name in _VIEWS and not several and not kwargs and self._is_at_the_start(args[0], result):
            self.views[len(self.steps) - 1] = self._made(result)
            self.starts[self._made(result)] = self._start(args[0])
        return result

    def _is_at_the_start(self, of: Any, view: Tensor) -> bool:
        """Whether a view starts where that tensor does, which hangs on its form alone."""
        if not isinstance(of, Tensor) or view is of or not view.numel() or of.data_ptr() != view.data_ptr():
            return False
        return of.untyped_storage().data_ptr() == view.untyped_storage().data_ptr()

    def _start(self, tensor: Tensor) -> int:
        """The register of the first tensor that is known to have the same address."""
        number = self._register(tensor)
        return self.starts.get(number, number)

    def _substituted(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> bool:
        """Notes a quicker way to make the same; False if there is none."""
        if EMPTY_ON_CPU is None or not made.is_cpu or made.layout is not torch.strided:
            return False
        # what the function gave back as it was given is not made
        if id(made) in self.registers or made.requires_grad or kwargs.get("pin_memory"):
            return False
        kernel = None
        if name not in _FRESH:
            kernel = substitutes[name](made, args)
            if kernel is None:
                return False
        form = tuple(made.shape), made.stride(), made.dtype
        self._add(EMPTY_ON_CPU, form, {}, [made], False, True)
        if kernel is not None:
            arguments = [self._address(each) if isinstance(each, Tensor) else each for each in kernel.arguments]
            self.kernel(kernel.caller, kernel.types, arguments, None, brief=True)  # of few elements
        return True

    def _address(self, tensor: Tensor, of: int = 0) -> Address:
        address = Address(of)
        address.register = self._start(tensor)
        return address

    def _add(
        self, function: Any, args: Any, kwargs: dict[str, Any], results: list[Tensor], several: bool, fresh: bool
    ) -> None:
        reads: set[int] = set()
        nodes = tuple(self._node(value, reads) for value in (*args, *kwargs.values()))
        numbers = tuple(self._made(each) for each in results)
        self.steps.append((function, nodes, tuple(kwargs), numbers, several, fresh, ()))
        self.reads.append(reads)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function that is none of PyTorch's, and notes that. What it is given besides tensors stays."""
        with torch._C.DisableTorchFunction():  # what it calls is its own affair
            result = function(*arguments)
        self._add_call(function, arguments, -1)
        return result

    def expect(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same of a function that must give what it gives now, or the replay breaks off."""
        with torch._C.DisableTorchFunction():
            result = function(*arguments)
        self._add_call(function, arguments, -1, wanted=(result,))
        return result

    def make(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """The same of a function that makes a tensor."""
        with torch._C.DisableTorchFunction():
            result = function(*arguments)
        self._add_call(function, arguments, self._made(result))
        return result

    def number(self, function: Callable[..., int], *arguments: Any) -> Number:
        """The same of a function whose result, found anew each time, is handed on to ``call`` or ``kernel``."""
        with torch._C.DisableTorchFunction():
            number = Number(function(*arguments))
        number.register = len(self.alive)
        self.alive.append(None)
        self._add_call(function, arguments, number.register)
        return number

    def keep(self, owner: Any) -> None:
        """Keeps what a step goes by as long as the plan."""
        self.kept.append(owner)

    def _add_call(self, function: Any, arguments: Sequence[Any], register: int, wanted: tuple[Any, ...] = ()) -> None:
        if self.refused:
            return
        try:
            reads: set[int] = set()
            known = Tensor, Address, Number
            nodes = tuple(
                self._node(value, reads) if isinstance(value, known) else (_CONSTANT, -1, value, ())
                for value in arguments
            )
            self.steps.append((function, nodes, (), (register,), False, False, wanted))
            self.reads.append(reads)
        except _RefusedError:
            self.refused = True

    def refuse(self) -> None:
        """Notes that something is done that no plan could do."""
        self.refused = True

    def kernel(
        self, caller: int | None, types: Sequence[Any], arguments: Sequence[Any], answer: Any, brief: bool = False
    ) -> None:
        """Notes a kernel's call, of a C function that takes arguments of these ``types`` of ctypes.

        ``brief``: it takes no longer than to let other threads of Python run meanwhile.
        """
        if self.refused or caller is None:
            self.refused = True
            return
        try:
            reads: set[int] = set()
            words = tuple(self._word(kind, value, reads) for kind, value in zip(types, arguments, strict=True))
            self.steps.append((caller, words, int(answer or 0), brief))
            self.reads.append(reads)
        except _RefusedError:
            self.refused = True

    def plan(self, result: Any) -> Plan | None:
        """The plan, if all could be noted, for a call that gave ``result``."""
        if self.refused:
            return None
        try:
            spared = self._make_as_shown(result)
            kept: set[int] = set(range(self.inputs))
            node = self._node(result, kept)
        except _RefusedError:
            return None
        steps: list[tuple[Any, ...]] = []
        for place in reversed(range(len(self.steps))):
            step, reads = self.steps[place], self.reads[place]
            if place in spared or (place in self.views and self.views[place] not in kept):
                continue  # kernels alone take it, who are told where it starts
            made = set(step[3]) - {-1} if callable(step[0]) else set()
            done = (made | reads) - kept
            kept |= done
            steps.append((step[0], tuple(done), *step[1:]))
        return Plan(tuple(reversed(steps)), node, len(self.alive), tuple(self.kept))

    def _make_as_shown(self, result: Any) -> set[int]:
        """Has memory made in the form of a view that the result has, if but for that kernels alone take it.

        The places of the steps that made such views.
        """
        shown = {*_objects([self._node(result, set())])}
        makers = {step[3]: place for place, step in enumerate(self.steps) if step[0] is EMPTY_ON_CPU}
        spared: set[int] = set()
        for place, number in self.views.items():
            of = self.steps[place][1][0][1]
            maker, made, view = makers.get((of,)), self.alive[of], self.alive[number]
            calls = (step[1] for other, step in enumerate(self.steps) if callable(step[0]) and other != place)
            elsewhere = {*itertools.chain.from_iterable(map(_objects, calls)), *shown - {number}}
            alike = view.dtype is made.dtype and view.numel() == made.numel()
            if maker is None or number not in shown or elsewhere & {of, number} or not alike:
                continue
            if view.is_contiguous() and made.is_contiguous():
                form = tuple(view.shape), view.stride(), view.dtype
                nodes = tuple(self._node(part, set()) for part in form)
                self.steps[maker] = (EMPTY_ON_CPU, nodes, *self.steps[maker][2:])
                self.registers[id(view)] = of
                spared.add(place)
        return spared

    def _register(self, tensor: Tensor) -> int:
        number = self.registers.get(id(tensor))
        if number is None:
            raise _RefusedError  # it came from elsewhere
        return number

    def _made(self, tensor: Tensor) -> int:
        """The register of a result."""
        number = self.registers.get(id(tensor))
        if number is None:
            number = self.registers[id(tensor)] = len(self.alive)
            self.alive.append(tensor)
        return number

    def _node(self, value: Any, reads: set[int]) -> tuple[Any, ...]:
        if isinstance(value, Tensor):
            number = self._register(value)
            reads.add(number)
            return _REGISTER, number, None, ()
        if isinstance(value, Address):
            reads.add(value.register)
            return _ADDRESS, value.register, None, ()
        if isinstance(value, Number):
            reads.add(value.register)
            return _REGISTER, value.register, None, ()
        if type(value) in (tuple, list):
            items = tuple(self._node(item, reads) for item in value)
            if any(item[0] != _CONSTANT for item in items):
                return _LIST if isinstance(value, list) else _TUPLE, -1, None, items
            return _CONSTANT, -1, value, ()
        if isinstance(value, slice):
            for part in (value.start, value.stop, value.step):
                self._node(part, reads)
            return _CONSTANT, -1, value, ()
        if isinstance(value, (*_SCALARS, torch.Size, Form)):
            return _CONSTANT, -1, value, ()
        raise _RefusedError

    def _word(self, kind: Any, value: Any, reads: set[int]) -> tuple[int, int, bool]:
        """The word, or the register that it comes from, and whether that holds a number."""
        if isinstance(value, Number):
            reads.add(value.register)
            return 0, value.register, True
        if kind in _FLOATS:
            return int.from_bytes(struct.pack("=d", value), sys.byteorder), -1, False
        if kind is not _POINTER:
            if type(value) not in (int, bool):
                raise _RefusedError
            return int(value), -1, False
        if isinstance(value, Address):
            reads.add(value.register)
            return 0, value.register, False
        if value is not None and not isinstance(value, Lasting):
            raise _RefusedError  # of memory that nobody knows
        return int(value or 0), -1, False


_thread = threading.local()


def recorder() -> Any:
    """That of this thread, while it records."""
    return getattr(_thread, "recorder", None)


@contextlib.contextmanager
def recording(active: Recorder) -> Iterator[None]:
    """Notes what this thread calls meanwhile."""
    _thread.recorder = active
    try:
        with active:
            yield
    finally:
        _thread.recorder = None


def make(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``function(*arguments)``, for what modes do not see of PyTorch's functions."""
    active = recorder()
    return function(*arguments) if active is None else active.make(function, *arguments)


def number(function: Callable[..., int], *arguments: Any) -> int:
    """``function(*arguments)``: what a kernel is given then, and asks for anew in each replay."""
    active = recorder()
    return function(*arguments) if active is None else active.number(function, *arguments)


def impure() -> None:
    """Says that what is done now has to be done in every call, so that no plan can stand for it."""
    active = recorder()
    if active is not None:
        active.refuse()
