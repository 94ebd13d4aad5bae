"""Converted modules: the same objects, of a subclass made for the purpose.

Changing the class of a module leaves everything else as it is: its identity, parameters, state dict, hooks, flags,
other references to it, ``isinstance``, its class's name. Nothing refers to another module, so copies, replicas and
children replaced later work. Equal recipes give the same class: all layers of a kind share one, and one compilation.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import types
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from optiacts import curves, functional
from optiacts.conversion.purity import holds
from optiacts.conversion.recognition import Recognised
from optiacts.conversion.rewriting import Plan, build, place_of
from optiacts.overwritten import made_by

_paths: weakref.WeakKeyDictionary[Module, str] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Recipe:
    """How to make the subclass of ``original``: methods by name, or what its forward computes as an activation.

    ``wrappers`` are the names of what is a static or class method or a property, with that type. Copies share a
    recipe; a pickle holds only the class and what was chosen, and the module is converted anew when it is loaded.
    """

    original: type[Module]
    methods: tuple[tuple[str, Plan], ...] = ()
    activation: Recognised | None = None
    wrappers: tuple[tuple[str, type], ...] = ()
    gated: bool = True

    def __deepcopy__(self, memo: Any) -> Recipe:
        return self

    def __reduce__(self) -> Any:
        chosen = frozenset(spot for _, plan in self.methods for spot in spots(plan))
        return Request, (self.original, chosen, self.activation is not None, self.gated)


@dataclass(frozen=True)
class Request:
    """A recipe as a pickle holds it: which places of the class's functions were converted."""

    original: type[Module]
    spots: frozenset[Any]
    activation: bool
    gated: bool


def spots(plan: Plan) -> set[Any]:
    """The places of a plan, by the functions' names: equal in every process that runs the same source."""
    function = plan.function
    own = {(function.__module__, function.__qualname__, at) for at, _ in plan.actions}
    return own.union(*(spots(other) for other in plan.rewritten))


class Converted(Module):
    """Mixed into each such subclass."""

    optiacts_recipe: Recipe
    optiacts_original: type[Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        standard = not isinstance(reduced, str) and reduced[0] is vars(copyreg)["__newobj__"]
        if not standard or "optiacts_recipe" not in type(self).__dict__:
            return reduced
        _, arguments, *state = reduced
        return (_new, (self.optiacts_recipe, _paths.get(self, ""), *arguments[1:]), *state)

    def __prepare_scriptable__(self) -> Module:
        raise RuntimeError(
            f"torch.jit.script cannot read the converted {type(self).__name__}; call optiacts.revert(model) first"
        )

    def _get_name(self) -> str:
        return f"OptiActs{super()._get_name()}"

    def optiacts_described(self) -> str:
        path = _paths.get(self)
        return f"{path or 'the module'} ({type(self).__name__})"

    def optiacts_paths(self, model: Module) -> set[str]:
        return {path for path, module in model.named_modules() if module is self}


def install(module: Module, recipe: Recipe, path: str = "") -> None:
    """Gives ``module`` the recipe's methods, in place. ``path`` is for error messages."""
    module.__class__ = converted_class(recipe)
    note_paths(module, recipe, path)


def note_paths(module: Module, recipe: Recipe, path: str) -> None:
    """Lets errors name ``module`` by its path."""
    _paths[module] = path
    for _, plan in recipe.methods:
        _note_path(plan, module, path)


def _note_path(plan: Plan, module: Module, path: str) -> None:
    place_of(plan).modules[module] = path
    for other in (*plan.rewritten, *(later for _, later in plan.waiting)):
        _note_path(other, module, path)


def uninstall(module: Module) -> None:
    """Undoes ``install``."""
    if "optiacts_recipe" not in type(module).__dict__:
        raise RuntimeError(
            f"{type(module).__name__} was converted and then given yet another class by some wrapper "
            f"({type(module).__mro__[1].__qualname__}); undo that first"
        )
    module.__class__ = type(module).optiacts_original  # type: ignore[attr-defined]


@functools.cache
def converted_class(recipe: Recipe) -> type[Module]:
    """The subclass of ``recipe.original`` with the recipe's methods."""
    original = recipe.original
    methods: dict[str, Any] = {}
    for name, plan in recipe.methods:
        wrapper = dict(recipe.wrappers).get(name)
        if wrapper is property:
            stood = inspect.getattr_static(original, name)
            methods[name] = property(build(plan), stood.fset, stood.fdel, stood.__doc__)
        else:
            method = _unless_replaced(original, name, build(plan))
            methods[name] = method if wrapper is None else wrapper(method)
    if recipe.activation is not None:
        methods["forward"] = _activation_forward(original, recipe.activation)
    members = {
        **methods,
        "optiacts_recipe": recipe,
        "optiacts_original": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (Converted, original), members)


def _unless_replaced(original: type[Module], name: str, ours: Any) -> Any:
    """``ours``, as long as the class still has the method that it was made from."""
    expected = _function(getattr(original, name))

    @functools.wraps(ours)
    def method(*args: Any, **kwargs: Any) -> Any:
        current = _function(getattr(original, name))
        return ours(*args, **kwargs) if current is expected else current(*args, **kwargs)

    method.optiacts_method = ours  # type: ignore[attr-defined]
    return method


def _function(method: Any) -> Any:
    """A class method is a new object each time, its function is not."""
    return method.__func__ if isinstance(method, types.MethodType) else method


def _activation_forward(original: type[Module], recognised: Recognised) -> Any:
    forward = original.forward
    curve, inplace, pins = recognised.curve, recognised.inplace, recognised.pins
    parameter = forward.__code__.co_varnames[1]

    @functools.wraps(forward)
    def activation(self: Module, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs.get(parameter)
        if (
            len(args) + len(kwargs) == 1
            and isinstance(x, Tensor)
            and functional.saves_memory(x)
            and holds(pins, self)
            and not functional.compiles_autocast(curves.get(curve), x)
        ):
            return made_by(functional.apply(curve, x, inplace), self)  # type: ignore[arg-type]
        return original.forward(self, *args, **kwargs)

    return activation


class _Loading(Module):
    """Mixed into a class while an object of it is loaded from a pickle."""


def _new(recipe: Recipe | Request, path: str, *arguments: Any) -> Module:
    kind = converted_class(recipe) if isinstance(recipe, Recipe) else _loading_class(recipe)
    module = kind.__new__(kind, *arguments)
    if isinstance(recipe, Recipe):
        note_paths(module, recipe, path)
    return module


@functools.cache
def _loading_class(request: Request) -> type[Module]:
    """A class whose objects convert themselves as soon as they have their state, and with it their children."""
    original = request.original

    def setstate(self: Module, state: Any) -> None:
        from optiacts.conversion.model import convert_loaded

        self.__class__ = original
        if hasattr(original, "__setstate__"):
            self.__setstate__(state)
        convert_loaded(self, request)

    return type(
        original.__name__, (_Loading, original), {"__setstate__": setstate, "__module__": original.__module__}
    )
