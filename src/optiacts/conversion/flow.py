"""Where an activation's output goes: what changes it in place, and whether anybody keeps it.

A small abstract interpretation of the functions of a model. A *value* is the set of origins that a tensor may share
memory with: activations (or products with one), and the arguments of the function. Views, slices, aliases, branches,
loops, calls of other functions and of child modules are followed; what cannot be seen is taken to return something
new.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import Module, Sequential

from optiacts.conversion.callees import Scope
from optiacts.conversion.followers import PASSING, described, follower_of
from optiacts.conversion.interpretation import Run
from optiacts.conversion.source import Position, UnseenError
from optiacts.conversion.values import (
    NOTHING,
    Dropped,
    Effect,
    Follower,
    Inside,
    Origin,
    Param,
    Value,
    behind_dropout,
    substituted,
)

_DEEPEST = 12
_SMALL = 256  # bytes of code: what only passes a tensor on is short


class Flow:
    """What was found out about a model's functions.

    Args:
        origins: for a scope, the expressions whose values are to be followed.
        activation: whether a module is an activation whose output is to be followed.
        worth: whether a function may evaluate an activation. Others are looked at if they are small.
        takes: whether, of two modules in a ``Sequential``, the second is a dropout that takes the first's output.
    """

    def __init__(
        self,
        origins: Callable[[Scope], dict[Position, Origin]],
        activation: Callable[[Module], bool],
        worth: Callable[[types.FunctionType], bool],
        takes: Callable[[Module, Module], bool],
    ) -> None:
        self._origins, self._activation, self._takes = origins, activation, takes
        self.worth = lambda function: len(function.__code__.co_code) < _SMALL or worth(function)
        self.changed: dict[Origin, str] = {}
        self.called: set[int] = set()  # modules, by their identity, that a function seen calls
        self.followers: dict[Origin, list[Follower]] = {}
        self._effects: dict[tuple[types.CodeType, int, int], Effect] = {}
        self._scopes: dict[tuple[int, int], Scope | None] = {}
        self._kept: list[Any] = []  # what the keys tell by its identity
        self._attributes: dict[tuple[int, str], Value] = {}
        self._kinds: dict[int, int] = {}
        self._signatures: dict[Any, int] = {}
        self._first: dict[int, tuple[Module, Effect, list[tuple[Any, ...]]]] = {}
        self._done: dict[int, Effect] = {}
        self._logs: list[list[tuple[Any, ...]]] = []
        self._depth = 0

    def scope(self, function: types.FunctionType, owner: Module | None) -> Scope | None:
        """The scope of a function; None if its source is not seen."""
        key = id(function), id(owner)
        if key not in self._scopes:
            self._kept += [function, owner]
            try:
                self._scopes[key] = Scope(function, owner)
            except UnseenError:
                self._scopes[key] = None
        return self._scopes[key]

    def kind(self, module: Module) -> int:
        """A number that modules share whose functions do the same: those of a class, with children of equal kinds."""
        number = self._kinds.get(id(module))
        if number is None:
            children = tuple((n, self.kind(child)) for n, child in module._modules.items() if child is not None)
            own = tuple(sorted((n, _told(value)) for n, value in vars(module).items() if _tells(n, value)))
            trained = tuple(p is not None and p.requires_grad for p in module._parameters.values())
            signature = type(module), children, own, trained, self._activation(module)
            number = self._kinds[id(module)] = self._signatures.setdefault(signature, len(self._signatures))
            self._kept.append((module, own))
        return number

    def module(self, module: Module) -> Effect:
        """What calling ``module`` with one argument, named ``0``, does.

        Layers of one kind are looked at once; what was found is repeated for the others.
        """
        kind = self.kind(module)
        if id(module) not in self._done:
            if kind not in self._first:
                log: list[tuple[Any, ...]] = []
                self._logs.append(log)
                effect = self._module(module)
                self._logs.pop()
                self._first[kind] = module, effect, log
                self._done[id(module)] = effect
            else:
                self._done[id(module)] = self._repeat(module, *self._first[kind])
        return self._done[id(module)]

    def _repeat(self, module: Module, first: Module, effect: Effect, log: list[tuple[Any, ...]]) -> Effect:
        """What is known of ``first``, said of ``module``."""
        same = {id(a): id(b) for a, b in zip(first.modules(), module.modules(), strict=True)}
        for note, *arguments in log:
            note(*(_renamed(argument, same) for argument in arguments))
        return Effect(effect.changes, _renamed(effect.returns, same), effect.names, effect.drops)

    def _module(self, module: Module) -> Effect:
        if self._activation(module):
            changes = {"0": described(module)} if getattr(module, "inplace", False) else {}
            origin: Value = frozenset((Origin(id(module)),))
            return Effect(changes, origin | ({Param("0")} if changes else NOTHING))
        if isinstance(module, Sequential) and type(module).forward is Sequential.forward:
            return self._sequence(module)
        if type(module).__module__.startswith("torch.nn.modules") and "forward" not in module.__dict__:
            if isinstance(module, nn.Module) and getattr(module, "inplace", False):
                return Effect({"0": described(module)}, frozenset((Param("0"),)))
            if isinstance(module, PASSING):
                passed = Param("0") if follower_of(module) is None else Dropped(Param("0"))
                return Effect({}, frozenset((passed,)))
            if not hasattr(module, "_ff_block") and not isinstance(module, (nn.Transformer,)):
                return Effect()
        forward = getattr(type(module), "forward", None)
        if not isinstance(forward, types.FunctionType) or "forward" in module.__dict__:
            return Effect()
        return self.function(forward, module)

    def function(self, function: types.FunctionType, owner: Module | None) -> Effect:
        """What calling ``function``, a method of ``owner`` if there is one, does."""
        while hasattr(function, "__wrapped__"):  # what decorators do is not followed
            inner = function.__wrapped__
            if not isinstance(inner, types.FunctionType):
                break
            function = inner
        key = function.__code__, id(owner), id(function)
        if key not in self._effects:
            scope = self.scope(function, owner) if self._depth < _DEEPEST else None
            if scope is None:
                return Effect()
            self._effects[key] = Effect()  # while it is looked at: a function that calls itself
            self._depth += 1
            self._effects[key] = Run(self, scope, self._origins(scope)).effect()
            self._depth -= 1
        return self._effects[key]

    def change(self, value: Value, what: str) -> None:
        """Notes that whatever shares memory with ``value`` is changed in place."""
        for origin in value:
            itself = origin.element if isinstance(origin, Dropped) else origin
            if isinstance(itself, Origin):
                self._note(self._changed, itself, what)

    def follow(self, value: Value, follower: Follower | None) -> None:
        """Notes who takes ``value``."""
        if follower is None:
            return
        for origin in value:
            if isinstance(origin, Origin):
                self._note(self._followed, origin, follower)

    def keep(self, owner: Module | None, name: str, value: Value) -> None:
        """Notes that a function binds an attribute of its module."""
        key = id(owner), name
        self._attributes[key] = self._attributes.get(key, NOTHING) | frozenset(
            origin for origin in value if not isinstance(origin, Param)
        )

    def kept(self, owner: Module | None, name: str) -> Value | None:
        """What a function may find in an attribute; None if none is known to bind it."""
        return self._attributes.get((id(owner), name))

    def call(self, module: Module) -> None:
        """Notes that a function calls ``module``."""
        self._note(self._called, id(module))

    def _note(self, what: Callable[..., None], *arguments: Any) -> None:
        what(*arguments)
        for log in self._logs:
            log.append((what, *arguments))

    def _changed(self, origin: Origin, what: str) -> None:
        self.changed.setdefault(origin, what)

    def _followed(self, origin: Origin, follower: Follower) -> None:
        followers = self.followers.setdefault(origin, [])
        if follower not in followers:
            followers.append(follower)

    def _called(self, number: int) -> None:
        self.called.add(number)

    def _sequence(self, sequence: Sequential) -> Effect:
        value: Value = frozenset((Param("0"),))
        changes: dict[str, str] = {}
        before: Module | None = None
        for child in sequence:
            effect = self.module(child)
            self.call(child)
            taken = before is not None and self._takes(before, child)
            before = child
            if taken:
                value = behind_dropout(value)
                continue
            self.follow(value, follower_of(child))
            for what in effect.changes.values():
                self.change(value, what)
                if Param("0") in value:
                    changes["0"] = what
            value = substituted(effect.returns, {"0": value})
        return Effect(changes, value)


def _tells(name: str, value: Any) -> bool:
    """Whether an attribute of a module may matter to what its functions do with tensors."""
    if name.startswith("_") or name == "training":
        return False
    return name in ("inplace", "p", "forward") or callable(value) or isinstance(value, (list, tuple, dict))


def _told(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, types.MethodType):
        return value.__func__
    return value.__code__ if isinstance(value, types.FunctionType) and not value.__closure__ else id(value)


def _renamed(value: Any, same: dict[int, int]) -> Any:
    """``value`` with other modules in the place of the ones that it names."""
    if isinstance(value, Origin):
        return value._replace(owner=same.get(value.owner, value.owner))
    if isinstance(value, int):
        return same.get(value, value)
    if isinstance(value, (Inside, Dropped)):
        return type(value)(_renamed(value.element, same))
    return frozenset(_renamed(v, same) for v in value) if isinstance(value, frozenset) else value
