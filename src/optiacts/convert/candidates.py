"""Which modules are worth a trace of their forward, judged by their class and children alone."""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import Module, ModuleDict, ModuleList, Sequential

from optiacts.convert.known import curve_of

# names in a forward's code
_ALONE = frozenset(("gelu", "silu", "mish", "sigmoid", "swish", "quick_gelu"))
_TELLING = _ALONE | {"relu"}  # which is rewritten as a gate only


def is_candidate(module: Module) -> bool:
    """Whether the forward may call an activation as a function or multiply an activation's output."""
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule, ModuleList, ModuleDict, Sequential)):
        return False
    return "forward" not in module.__dict__ and bool(_activation_names(module) or _reached(type(module)) & _TELLING)


def multiplies(module: Module) -> bool:
    """Whether the forward itself calls an activation as a function, or one of its modules and ``*`` too."""
    code = inspect.unwrap(type(module).forward).__code__
    names = frozenset(code.co_names)
    product = any(i.opname == "BINARY_MULTIPLY" or i.argrepr in ("*", "*=") for i in dis.get_instructions(code))
    return bool(names & _ALONE) or (product and bool(names & (_TELLING | _activation_names(module))))


def helpers(module: Module) -> Iterator[str]:
    """Methods that call an activation: where the forward cannot be traced, perhaps these can."""
    telling = _TELLING | _activation_names(module)
    own_classes = [kind for kind in type(module).__mro__ if kind is not Module and issubclass(kind, Module)]
    for name in dict.fromkeys(name for kind in own_classes for name in vars(kind)):
        method = getattr(type(module), name)
        if isinstance(method, types.FunctionType) and name != "forward" and not name.startswith("__"):
            code = inspect.unwrap(method).__code__
            if telling & set(code.co_names) and code.co_varnames[:1] == ("self",) and name not in vars(module):
                yield name


def activations(module: Module) -> Iterator[Module]:
    """The activation modules that the forward of ``module`` itself may call: children, in lists too."""
    for child in module.children():
        if isinstance(child, (ModuleList, ModuleDict)):
            yield from activations(child)
        elif curve_of(child) is not None:
            yield child


def _activation_names(module: Module) -> frozenset[str]:
    """The attributes of a module that are activations: modules, lists of modules, or functions."""
    modules = {
        name
        for name, child in module.named_children()
        if curve_of(child) is not None
        or (isinstance(child, (ModuleList, ModuleDict)) and next(activations(child), None) is not None)
    }
    held = {name for name, value in vars(module).items() if getattr(value, "__name__", "") in _TELLING}
    return frozenset(modules | held)


def _reached(kind: type[Module]) -> frozenset[str]:
    """The global and attribute names in the forward of a class and in the methods that it calls."""
    used: set[str] = set()
    methods: list[Callable[..., Any]] = [kind.forward]
    seen: set[object] = set()
    while methods:
        method = inspect.unwrap(methods.pop())
        if method in seen or not isinstance(method, types.FunctionType):
            continue
        seen.add(method)
        names = set(method.__code__.co_names)
        used |= names
        methods += [other for name in names if isinstance(other := getattr(kind, name, None), types.FunctionType)]
    return frozenset(used)
