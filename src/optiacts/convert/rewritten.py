"""Modules with a rewritten forward: the same objects, of a subclass that is made for the purpose.

Changing the class of a module leaves everything else as it is: its identity, parameters, state dict, hooks,
flags, other references to it, ``isinstance``, its class's name. Nothing refers to another module, so copies,
replicas and children replaced later work. The subclass is a function of its recipe; equal recipes give the
same class (all layers of a model share one, and one compilation), and pickles carry the recipe.
"""

from __future__ import annotations

import copyreg
import functools
import linecache
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module

from optiacts.convert.known import gate_of


@dataclass(frozen=True)
class Recipe:
    """How to make the subclass of ``original``.

    ``source`` is the text of its methods. It may use the names ``torch``, ``original`` (the class),
    ``gate_of`` and those of ``names``, whose values must be importable.
    """

    original: type[Module]
    source: str
    names: tuple[tuple[str, Any], ...]
    curve: str | None  # for an activation, the curve that it follows


class Rewritten(Module):
    """Mixed into each such subclass."""

    recipe: Recipe

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(max(protocol, 2))
        if (
            isinstance(reduced, str)
            or reduced[0] is not vars(copyreg)["__newobj__"]
            or "recipe" not in type(self).__dict__
        ):
            return reduced
        _, arguments, *state = reduced
        return (_new, (self.recipe, *arguments[1:]), *state)

    def _get_name(self) -> str:
        return f"OptiActs{super()._get_name()}"


def install(module: Module, recipe: Recipe) -> None:
    """Gives ``module`` the rewritten forward, in place."""
    module.__class__ = rewritten_class(recipe)


def uninstall(module: Module) -> None:
    """Undoes ``install``."""
    if "recipe" not in type(module).__dict__:
        raise RuntimeError(
            f"{type(module).__name__} was converted and then given yet another class by some wrapper "
            f"({type(module).__mro__[1].__qualname__}); undo that first"
        )
    module.__class__ = type(module).recipe.original  # type: ignore[attr-defined]


def _new(recipe: Recipe, *arguments: Any) -> Module:
    kind = rewritten_class(recipe)
    return kind.__new__(kind, *arguments)


@functools.cache
def rewritten_class(recipe: Recipe) -> type[Module]:
    """The subclass of ``recipe.original`` whose forward is ``recipe.source``."""
    original = recipe.original
    filename = f"<optiacts.convert {original.__qualname__} {abs(hash(recipe)):x}>"
    linecache.cache[filename] = (len(recipe.source), None, recipe.source.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {"torch": torch, "original": original, "gate_of": gate_of, **dict(recipe.names)}
    methods: dict[str, Any] = {}
    exec(compile(recipe.source, filename, "exec"), scope, methods)
    members = {
        **methods,
        "recipe": recipe,
        "optiacts_curve": recipe.curve,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (Rewritten, original), members)
