"""Which curve a callable computes, found out by what it computes: its values and its gradients.

Only a callable that is seen to be pure (purity.py) is ever run, on probe points of our own. If it runs the very
operation of a curve, it is that curve. If it computes the same values and gradients by other steps, it becomes a
*variant*: the same mathematics with those steps as its forward, so that the bits stay the callable's own.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import inspect
import itertools
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from optiacts import curves
from optiacts.conversion.callees import Scope
from optiacts.conversion.lookup import MISSING, module_attribute
from optiacts.conversion.purity import ImpureError, Pin, pins_of, pins_of_expression
from optiacts.conversion.source import Function, position, rebuilt
from optiacts.conversion.spelled import FUNCTIONS
from optiacts.conversion.steps import Replay, Step, Steps, Trial, tried, undisturbed

# What has corners may leave the curve beyond any probe point.
_CORNERED = frozenset(
    """abs absolute clamp clamp_max clamp_min hardshrink hardsigmoid hardswish hardtanh leaky_relu maximum minimum
    relu relu6 softshrink sign where threshold celu elu selu fmod remainder floor ceil round trunc""".split()
)


@dataclass(frozen=True, eq=False)
class Recognised:
    """What a callable computes, as long as everything that it depends on stays as it is.

    ``curve`` is the name of a curve or variant, ``base`` of the curve whose mathematics it is; ``steps`` are those of
    a variant. ``inplace``: the result overwrites the input. ``traceable``: compilers can compare what it depends on.
    ``numbers`` are local variables that an expression depends on, with their values.
    """

    curve: str
    base: str
    inplace: bool
    pins: tuple[Pin, ...]
    steps: Steps = ()
    traceable: bool = True
    numbers: tuple[tuple[str, float], ...] = ()

    @property
    def keeps_input(self) -> bool:
        """Whether PyTorch keeps the input, so that there is something to save by itself. ReLU keeps its result."""
        curve = curves.get(self.base)
        return not (curve.keeps_output or (self.inplace and curve.inplace_keeps_output))


def recognise_function(function: Callable[..., Any]) -> Recognised:
    """What a Python function of one tensor computes; ``ImpureError`` says why that is not known."""
    if not isinstance(function, types.FunctionType):
        raise ImpureError("its code is not seen")
    return _recognised(function, (*_defaults(None, function), *pins_of(function)), function)


def recognise_partial(partial: functools.partial[Any]) -> Recognised:
    """What a Python function with some arguments given computes; ``ImpureError`` says why that is not known."""
    function = partial.func
    if not isinstance(function, types.FunctionType):
        raise ImpureError("its code is not seen")
    inner = pins_of(function, None, partial.args, partial.keywords)
    if any(isinstance(pin.root, int) for pin in inner):
        raise ImpureError("depends on what encloses it")
    own = (Pin(None, ("func",), function), Pin(None, ("args",), partial.args))
    options = Pin(None, ("keywords",), dict(partial.keywords))  # a copy: theirs may change
    return _recognised(partial, (*own, options, *definition(function), *inner), function)


def definition(function: types.FunctionType) -> Iterator[Pin]:
    """That a function stays what it is."""
    yield Pin(function, ("__code__",), function.__code__)
    yield from _defaults(function, function)


def _defaults(root: Any, function: types.FunctionType) -> Iterator[Pin]:
    yield Pin(root, ("__defaults__",), function.__defaults__)
    yield Pin(root, ("__kwdefaults__",), dict(function.__kwdefaults__) if function.__kwdefaults__ else None)


def recognise_module(module: Module) -> Recognised:
    """What a module without parameters computes; ``ImpureError`` says why that is not known."""
    kind = getattr(type(module), "optiacts_original", type(module))
    forward = kind.forward
    if not isinstance(forward, types.FunctionType):
        raise ImpureError("its code is not seen")
    pins = (Pin(kind, ("forward",), forward), *definition(forward), *pins_of(forward, module))
    return _recognised(functools.partial(forward, alone(module, pins)), pins, forward)


def recognise_expression(
    scope: Scope, expression: ast.expr, variable: str, numbers: Mapping[str, float]
) -> Recognised:
    """What ``expression``, of one local variable of a function, computes; ``ImpureError`` says why not known.

    It may depend on other local variables that are ``numbers`` when they have these values.
    """
    function, owner = scope.function, scope.owner
    pins = pins_of_expression(function, owner, expression, variable, numbers)
    name = scope.context.self_name

    def edit(node: Function) -> None:
        names = [*([] if name is None else [name]), variable, *numbers]
        node.args = ast.arguments([], [ast.arg(n) for n in names], None, [], [], None, [])
        if isinstance(node, ast.Lambda):
            node.body = expression
        else:
            node.body = [ast.copy_location(ast.Return(expression), expression)]

    run: Callable[..., Any] = functools.partial(rebuilt(function, edit, {"_optiacts_unused": None}), **numbers)
    if name is not None and owner is not None:
        run = functools.partial(run, alone(owner, pins))
    return _recognised(run, pins, function, (position(expression), variable), tuple(numbers.items()))


def alone(module: Module, pins: tuple[Pin, ...]) -> Module:
    """An object with the attributes that the forward reads, and nothing else of the user's."""
    copied = copy.copy(module)
    copied.__dict__ = dict(copied.__dict__)
    for root, path, _ in pins:
        if root is None and path[1:] == ("__self__",):
            method = module_attribute(module, path[0])
            if method is not MISSING:
                copied.__dict__[path[0]] = types.MethodType(method.__func__, copied)
    return copied


def _recognised(
    run: Callable[[Tensor], Any],
    pins: tuple[Pin, ...],
    function: types.FunctionType,
    part: Any = None,
    numbers: tuple[tuple[str, float], ...] = (),
) -> Recognised:
    """The result for a function, or for the expression ``part`` of it, that depends on ``pins`` and ``numbers``."""
    pins = distinct(pins)

    def find() -> Recognised:
        curve, base, inplace, steps = _compared(run)
        return Recognised(curve, base, inplace, pins, steps, compilers_can_compare(pins), numbers)

    return _found.of(function, pins, (part, numbers, *curves.CURVES), find)


T = TypeVar("T")


class Findings(Generic[T]):
    """What was found out for functions' code, by the values of their pins: layers of a kind are tried once."""

    def __init__(self) -> None:
        self._met: weakref.WeakKeyDictionary[types.CodeType, dict[Any, Any]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, function: types.FunctionType, pins: tuple[Pin, ...], more: Any, find: Callable[[], T]) -> T:
        """What ``find`` returns, or the ``ImpureError`` that it raises, undisturbed, once for each ``more``."""
        key = (more, *((id(pin.root), pin.path, identity(pin.value)) for pin in pins))
        with self._lock:
            met = self._met.setdefault(function.__code__, {})
        if key not in met:
            try:
                with undisturbed():
                    found: T | str = find()
            except ImpureError as error:
                found = str(error)
            with self._lock:
                met.setdefault(key, (found, pins))  # pins keep alive what the key tells by its identity
        found = met[key][0]
        if isinstance(found, str):
            raise ImpureError(found)
        return found


_found: Findings[Recognised] = Findings()


def distinct(pins: tuple[Pin, ...]) -> tuple[Pin, ...]:
    """One pin for each thing that is pinned."""
    return tuple({(id(pin.root), pin.path): pin for pin in pins}.values())


def compilers_can_compare(pins: tuple[Pin, ...]) -> bool:
    """Whether there are no closure cells among ``pins``, and no autograd Functions."""
    return not any(isinstance(pin.root, (int, types.CellType, type(torch.autograd.Function))) for pin in pins)


def identity(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(identity, value))
    if isinstance(value, dict):
        return tuple((key, identity(value[key])) for key in sorted(value))
    return (type(value), value) if isinstance(value, (int, float, str)) else id(value)


def _compared(run: Callable[[Tensor], Any]) -> tuple[str, str, bool, Steps]:
    """Curve or variant, base, in place or not, and steps."""
    trial = tried(run)
    if trial is None:
        raise ImpureError("does not run on a tensor alone")
    exact = _exact(tuple(curves.CURVES))
    for base, inplace, theirs in exact:
        if trial.steps == theirs.steps and trial.agrees(theirs):
            return base, base, inplace, ()
    member = _of_family(trial)
    if member is not None:
        return member, member, trial.inplace, ()
    if trial.inplace:
        raise ImpureError("overwrites its input")
    if not trial.replayable or any(step.operation in _CORNERED for step in trial.steps):
        raise ImpureError("no curve has its values and gradients")
    for base, inplace, theirs in exact:
        if not inplace and base in curves.CURVES and trial.agrees(theirs):
            return define_variant(base, trial.steps), base, False, trial.steps
    raise ImpureError("no curve has its values and gradients")


def known_curve(run: Callable[[Tensor], Any]) -> str | None:
    """The curve or variant that a callable computes; None if it is none. It is run; what it does is not looked at."""
    try:
        with undisturbed():
            return _compared(run)[0]
    except ImpureError:
        return None


def define_variant(base: str, steps: Steps) -> str:
    """Makes the variant of ``base`` whose forward is ``steps`` known to the ops; returns its name.

    The name follows from the steps alone, so equal ones in other classes and other processes get it as well.
    """
    name = f"{base}/{hashlib.sha256(repr(steps).encode()).hexdigest()[:12]}"
    return curves.variant(base, name, Replay(steps)).name


@functools.cache
def _exact(names: tuple[str, ...]) -> list[tuple[str, bool, Trial]]:
    """The forwards of these curves, out of place and in place, tried: curve, whether in place, what came out."""
    runs: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        *((name, curves.get(name).forward) for name in names),
        *(
            (name, functools.partial(known.function, inplace=True))
            for known in FUNCTIONS
            if known.inplace
            for _, name in known.ways
            if not curves.get(name).keeps_output
        ),
        *((name, curve.forward) for name, curve in curves.GATES.items() if curve.keeps_output and curve.ops),
    ]
    trials = [(name, tried(run)) for name, run in runs]
    return [(name, trial.inplace, trial) for name, trial in trials if trial is not None]


def _of_family(trial: Trial) -> str | None:
    """The member of a family that was tried, by the numbers in its steps."""
    for name, values, template in _templates(tuple(curves.FAMILIES)):
        numbers = _numbers(trial.steps, template, values)
        if numbers is None:
            continue
        member = curves.member(name, **numbers)
        if member is None:
            continue
        for run in _ways(name, member, numbers):
            theirs = tried(run)
            if theirs is not None and theirs.steps == trial.steps and trial.agrees(theirs):
                return member
    return None


@functools.cache
def _templates(names: tuple[str, ...]) -> list[tuple[str, dict[str, float], Steps]]:
    """The steps of each family, out of place and in place, with numbers that occur nowhere else."""
    found = []
    for name in names:
        parameters = inspect.signature(curves.FAMILIES[name].make).parameters.values()
        values = {p.name: _odd(p.default, place) for place, p in enumerate(parameters)}
        member = curves.member(name, **values)
        for run in () if member is None else _ways(name, member, values):
            trial = tried(run)
            if trial is not None:
                found.append((name, values, trial.steps))
    return found


def _odd(default: Any, place: int) -> float:
    """A number near the default, told from all others."""
    number = 0.0 if default is inspect.Parameter.empty else float(default)
    return number - (1 + place) * 2.0**-20


def _ways(name: str, member: str, values: dict[str, float]) -> list[Callable[[Tensor], Tensor]]:
    """The forward of a member, and PyTorch's functions in place."""
    inplace = [known.function for known in FUNCTIONS if known.family == name and known.inplace]
    return [
        curves.get(member).forward,
        *(functools.partial(function, **values, inplace=True) for function in inplace),
    ]


def _numbers(steps: Steps, template: Steps, values: dict[str, float]) -> dict[str, float] | None:
    """What stands in ``steps`` where ``values`` stand in ``template``; None if they differ otherwise."""
    if len(steps) != len(template):
        return None
    odd, found = {value: name for name, value in values.items()}, {}
    for step, wanted in zip(steps, template, strict=True):
        if (step.operation, step.overload, step.options) != (wanted.operation, wanted.overload, wanted.options):
            return None
        pairs = itertools.zip_longest(_complete(step), _complete(wanted))
        for argument, expected in pairs:
            if isinstance(expected, float) and expected in odd:
                found[odd[expected]] = argument
            elif argument != expected:
                return None
    return found if found.keys() == values.keys() else None


def _complete(step: Step) -> tuple[Any, ...]:
    """The arguments of a step, with the defaults that were left out."""
    schema = getattr(getattr(torch.ops.aten, step.operation), step.overload)._schema
    left_out = [a.default_value for a in schema.arguments[len(step.arguments) :] if not a.kwarg_only]
    return (*step.arguments, *left_out)
