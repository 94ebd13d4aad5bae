"""Activations at run time: what a callable is now, and whether this call of it can keep its output.

Everything here is also traced by compilers: plain comparisons, which they turn into guards.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from optiacts import curves
from optiacts._torch import function_mode, function_modes, watched
from optiacts.conversion.purity import holds
from optiacts.conversion.recognition import Recognised
from optiacts.conversion.spelled import FUNCTIONS
from optiacts.functional import compiles_autocast, saves_memory


class Known(NamedTuple):
    """A recognised callable, told by the code of a function or the class of a module."""

    key: Any
    recognised: Recognised


class Activated(NamedTuple):
    """A call of an activation that can keep its output."""

    curve: str
    input: Tensor
    inplace: bool


def activated(
    known: tuple[Known, ...], callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sure: bool = False
) -> Activated | None:
    """Which activation ``callee(*args, **kwargs)`` evaluates, if a gradient is wanted and it can keep its output.

    ``sure``: a gradient is wanted, no compiler traces and nobody looks on.
    """
    found = _recognised(known, callee, args, kwargs)
    if found is None:
        while isinstance(callee, functools.partial):
            args, kwargs = (*callee.args, *args), {**callee.keywords, **kwargs}
            callee = callee.func
        found = _of_torch(callee, args, kwargs)
    if found is None or sure:
        return found
    if not saves_memory(found.input) or intercepted():
        return None
    curve = curves.get(found.curve)
    if not curve.keeps_output and compiles_autocast(curve, found.input):
        return None
    return found


def _of_torch(callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Activated | None:
    """A call of PyTorch's own function, of arguments that it takes."""
    for known in FUNCTIONS:
        if callee is known.function:
            options = dict(kwargs)
            x = args[0] if args else options.pop("input", None)
            names = tuple(known.defaults) if known.family is not None else ()
            places = (*names, "inplace") if known.inplace else names
            if len(args) > 1 + len(places):
                return None
            for name, value in zip(places, args[1:]):  # noqa: B905 (of which there may be fewer)
                if name in options:
                    return None
                options[name] = value
            inplace = options.pop("inplace", False) if known.inplace else False
            valid = options.keys() <= known.defaults.keys() and isinstance(x, Tensor) and isinstance(inplace, bool)
            curve = known.curve(options) if valid else None
            return Activated(curve, x, inplace) if curve is not None else None
    return None


def _recognised(
    known: tuple[Known, ...], callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Activated | None:
    """A call, with a tensor alone, of a function or module that was recognised and is still the same."""
    if not known or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        return None
    if isinstance(callee, Module):
        key: Any = getattr(type(callee), "optiacts_original", type(callee))
        if watched(callee):
            return None
    elif isinstance(callee, types.FunctionType):
        key = callee.__code__
    elif isinstance(callee, functools.partial):
        key = functools.partial
    else:
        return None
    compiling = torch.compiler.is_compiling()
    for candidate in known:
        if compiling and not candidate.recognised.traceable:
            continue
        if candidate.key is key and holds(candidate.recognised.pins, callee):
            return Activated(candidate.recognised.curve, args[0], candidate.recognised.inplace)
    return None


class Dropping(NamedTuple):
    """A dropout as it is called."""

    p: float
    training: bool
    inplace: bool


def is_dropout(callee: Any) -> bool:
    """Whether ``callee`` is PyTorch's dropout: the function, or a module that has its forward."""
    if isinstance(callee, Module):
        return runs(type(callee), torch.nn.Dropout)
    return callee is torch.nn.functional.dropout


def is_identity(callee: Any) -> bool:
    """Whether ``callee`` is a module that returns its argument."""
    if not isinstance(callee, Module) or "forward" in callee.__dict__:
        return False
    return runs(type(callee), torch.nn.Identity)


def original_class(module: Module) -> type[Module]:
    """The class that a module had before it was converted."""
    return original(type(module))


def original(kind: type[Module]) -> type[Module]:
    """The class from which a conversion made ``kind``, or itself."""
    return getattr(kind, "optiacts_original", kind)


def runs(kind: type[Module], known: type[Module]) -> bool:
    """Whether modules of the class ``kind``, converted or not, have the forward of ``known``."""
    return getattr(original(kind), "forward", None) is known.forward  # TorchScript has none


def overwrites(callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``callee(input, *args, **kwargs)`` is a dropout in place, seen by somebody or not."""
    if not is_dropout(callee):
        return False
    if isinstance(callee, Module):
        return bool(callee.inplace)
    return bool(args[2] if len(args) > 2 else kwargs.get("inplace", False))


def dropping(callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Dropping | None:
    """How ``callee(input, *args, **kwargs)`` drops; None if it is anything else, or somebody sees or changes it."""
    if not is_dropout(callee) or intercepted():
        return None
    if isinstance(callee, Module):
        module: Any = callee
        return None if args or kwargs or watched(callee) else Dropping(module.p, module.training, module.inplace)
    given = {**dict(zip(("p", "training", "inplace"), args, strict=False)), **kwargs}
    valid = len(args) <= 3 and all(key in ("p", "training", "inplace") for key in kwargs)
    return Dropping(given.get("p", 0.5), given.get("training", True), given.get("inplace", False)) if valid else None


def intercepted() -> bool:
    """Whether a mode of the user's sees, and may change, every call of PyTorch's functions."""
    count = 0 if torch.compiler.is_compiling() else function_modes()
    return count > 0 and any(type(function_mode(i)).__module__.partition(".")[0] not in _OURS for i in range(count))


_OURS = ("torch", "optiacts")  # torch.device(...), and the report's


Rewritten = tuple[types.FunctionType, types.FunctionType]  # the user's function, and ours with the same meaning


def chosen(rewritten: tuple[Rewritten, ...], callee: Any) -> Callable[..., Any]:
    """``callee``, or its rewritten version."""
    for original, ours in rewritten:
        if callee is original:
            return ours
        if isinstance(callee, types.MethodType) and _meant(callee.__func__) is original:
            return functools.partial(ours, callee.__self__)
    return callee


def _meant(function: Any) -> Any:
    """What a method stands for: a converted class's one for the rewritten function."""
    return function.optiacts_method if hasattr(function, "optiacts_method") else function
