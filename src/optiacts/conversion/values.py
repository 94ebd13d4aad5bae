"""What is known of a tensor while functions are read: which activations' outputs it may share memory with."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optiacts.conversion.source import Position


class Origin(NamedTuple):
    """An activation module, by its identity, or an expression in a function (of a module, if it is a method)."""

    owner: int
    code: types.CodeType | None = None
    at: Position | None = None


class Param(NamedTuple):
    """An argument of the function that is looked at; ``name`` with a star stands for all further ones."""

    name: str


class Inside(NamedTuple):
    """An element of a list, tuple or dictionary."""

    element: Any


class Dropped(NamedTuple):
    """What a dropout or a cast returns: the tensor itself at times, but not what is kept for backward."""

    element: Any


Value = frozenset[Any]
NOTHING: Value = frozenset()


@dataclass(frozen=True)
class Follower:
    """Somebody who takes an activation's output. ``keeps`` is False if it surely does not keep it for backward.

    ``frozen``: it does not as long as its weight is frozen.
    """

    description: str
    keeps: bool
    frozen: bool = False


@dataclass
class Effect:
    """What a call does with its arguments: which it changes in place, and what its result may share memory with.

    Positional parameters are called by their numbers; ``names`` are the names that they have as keywords. ``drops``
    are those that nobody keeps for backward, with who takes them.
    """

    changes: dict[str, str] = field(default_factory=dict)  # parameter -> what changes it
    returns: Value = NOTHING
    names: tuple[str, ...] = ()
    drops: dict[str, Follower] = field(default_factory=dict)


def substituted(returns: Value, arguments: dict[str, Value]) -> Value:
    result: set[Any] = set()
    for origin in returns:
        if isinstance(origin, Param):
            result |= arguments.get(origin.name, NOTHING)
        elif isinstance(origin, (Inside, Dropped)):
            result |= {type(origin)(o) for o in substituted(frozenset((origin.element,)), arguments)}
        else:
            result.add(origin)
    return frozenset(result)


def opened(value: Value) -> Value:
    """What an element of ``value``, or a view of it, may share memory with."""
    return frozenset(origin.element if isinstance(origin, Inside) else origin for origin in value)


def behind_dropout(value: Value) -> Value:
    """What the result of a dropout of ``value`` may share memory with, where it drops nothing."""
    return frozenset(origin if isinstance(origin, Dropped) else Dropped(origin) for origin in value)


def enclosed(values: Iterable[Value]) -> Value:
    return frozenset(o if isinstance(o, Inside) else Inside(o) for value in values for o in value)


class Numbered(dict[str, Any]):
    """Arguments that are parameters again, positional ones by their numbers."""

    def get(self, name: str, default: Any = None) -> Value:
        return frozenset((Param(super().get(name, name)),))
