"""Which modules are worth a trace of their forward, judged by their class and children alone."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator

import torch
from torch.nn import Module, ModuleDict, ModuleList, Sequential

from optiacts.convert.known import curve_of

_TELLING = frozenset(("gelu", "silu", "mish", "sigmoid", "swish", "quick_gelu"))  # names in a forward's code


def is_candidate(module: Module) -> bool:
    """Whether the forward may call an activation as a function or multiply an activation's output."""
    kind = type(module)
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule, ModuleList, ModuleDict, Sequential)):
        return False
    if "forward" in module.__dict__:
        return False
    names_one = bool(_names_used(kind) & _TELLING)
    holds_one = any(getattr(value, "__name__", "") in _TELLING for value in vars(module).values())
    return names_one or holds_one or any(True for _ in activations(module))


def activations(module: Module) -> Iterator[Module]:
    """The activation modules that the forward of ``module`` itself may call: children, in lists too."""
    for child in module.children():
        if isinstance(child, (ModuleList, ModuleDict)):
            yield from activations(child)
        elif curve_of(child) is not None:
            yield child


@functools.cache
def _names_used(kind: type[Module]) -> frozenset[str]:
    """The global and attribute names in the forward of a class and in the methods that it calls."""
    used: set[str] = set()
    functions = [kind.forward]
    seen: set[object] = set()
    while functions:
        function = inspect.unwrap(functions.pop())
        if function in seen or not isinstance(function, types.FunctionType):
            continue
        seen.add(function)
        names = set(function.__code__.co_names)
        used |= names
        functions += [method for name in names if isinstance(method := getattr(kind, name, None), types.FunctionType)]
    return frozenset(used)
