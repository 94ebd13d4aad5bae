"""Whether a function is worth reading: may it, or something that it calls, evaluate an activation?

Told from the names in its compiled code alone, so that hundreds of methods cost nothing.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from typing import Any

from torch.nn import Module

from optiacts.conversion.spelled import FUNCTIONS, torch_curve

_CURVED = frozenset(
    """gelu silu mish swish sigmoid tanh erf erfc exp expit softplus logsigmoid relu glu quick_gelu
    activation act act_fn activation_fn""".split()
) | {known.function.__name__ for known in FUNCTIONS if hasattr(known.function, "__name__")}
_MOST = 64  # elements of a table that are looked at
_FOREIGN = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "optiacts"}


def foreign(function: types.FunctionType) -> bool:
    """Whether a function belongs to Python or torch, and is not one of their wrappers around a user's function."""
    return (function.__module__ or "").partition(".")[0] in _FOREIGN and not hasattr(function, "__wrapped__")


_names: weakref.WeakKeyDictionary[types.CodeType, frozenset[str]] = weakref.WeakKeyDictionary()


def names_in(code: types.CodeType) -> frozenset[str]:
    """All names, and strings that may be names, in a code object and those inside it."""
    found = _names.get(code)
    if found is None:
        names = {*code.co_names, *code.co_freevars}
        for constant in code.co_consts:
            if isinstance(constant, str):
                names.add(constant)
            elif isinstance(constant, types.CodeType):
                names |= names_in(constant)
        found = _names[code] = frozenset(names) | {name.lower() for name in names if len(name) < 32}
    return found


class Interest:
    """What one conversion has found out about functions.

    Args:
        dropout: whether dropouts are of interest, too.
    """

    def __init__(self, dropout: bool) -> None:
        self._names = _CURVED | ({"dropout"} if dropout else set())
        self._met: dict[int, tuple[types.FunctionType, bool]] = {}

    def of(self, function: types.FunctionType, attributes: frozenset[str] = frozenset()) -> bool:
        """Whether to read ``function``; ``attributes`` are those of its module that are, or hold, activations."""
        if attributes & names_in(function.__code__):
            return True
        known = self._met.get(id(function))
        if known is None:
            self._met[id(function)] = function, False  # while it is looked at: a function that calls itself
            known = self._met[id(function)] = function, self._look(function)
        if known[1]:
            return True
        return bool(attributes) and any(attributes & names_in(inner.__code__) for inner in enclosed_in(function))

    def directly(self, function: types.FunctionType, attributes: frozenset[str] = frozenset()) -> bool:
        """Whether ``function`` itself looks like it, whatever it calls."""
        return bool((attributes | self._names) & names_in(function.__code__))

    def _look(self, function: types.FunctionType) -> bool:
        names = names_in(function.__code__)
        if names & self._names:
            return True
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        values = [function.__globals__.get(name) for name in names] + _cells(function) + defaults
        return any(self._leads_on(value) for value in values)

    def _leads_on(self, value: Any) -> bool:
        if torch_curve(value) is not None:
            return True
        if isinstance(value, types.FunctionType):
            return not foreign(value) and self.of(value)
        if isinstance(value, dict) and type(value) is not dict and "__getitem__" in vars(type(value)):
            return True  # a table that makes activations
        if isinstance(value, (dict, list, tuple)):  # a table of activations, perhaps
            values = list(value.values() if type(value) is dict else value)[:_MOST]
            return any(self._leads_on(v) for v in values if not isinstance(v, (dict, list, tuple)))
        return isinstance(value, (Module, functools.partial)) and not isinstance(value, type)


def wrapped_in(function: types.FunctionType) -> list[types.FunctionType]:
    """The functions that a decorator's wrapper keeps."""
    return [value for value in _cells(function) if isinstance(value, types.FunctionType)]


def enclosed_in(function: types.FunctionType) -> list[types.FunctionType]:
    """The functions that a wrapper keeps, those that they keep, and so on."""
    found: list[types.FunctionType] = []
    waiting = wrapped_in(function)
    while waiting:
        inner = waiting.pop()
        if inner is not function and inner not in found:
            found.append(inner)
            waiting += wrapped_in(inner)
    return found


def _cells(function: types.FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    return found
