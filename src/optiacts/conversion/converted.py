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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from optiacts import casts, curves, functional, functional_elementwise, functional_gated, functional_norm
from optiacts.conversion import adapters
from optiacts.conversion.known import intercepted
from optiacts.conversion.norm_recognition import RecognisedNorm
from optiacts.conversion.purity import holds
from optiacts.conversion.recognition import Recognised, compilers_can_compare
from optiacts.conversion.rewriting import Place, Plan, build, place_of
from optiacts.conversion.sequences import Steps, forward_of
from optiacts.conversion.subclass import quiet_subclass
from optiacts.ops.norm import FunctionForm
from optiacts.ops.norm_graphs import loaded, register
from optiacts.ops.plain import no_view
from optiacts.overwritten import made_by

_paths: weakref.WeakKeyDictionary[Module, str] = weakref.WeakKeyDictionary()


class NormMode(NamedTuple):
    """Whether a norm keeps its output or its input, and under autocast the cast that Linears after it share."""

    keep_output: bool
    share_cast: bool = False


class KeptNorm(NamedTuple):
    """A norm, and what it keeps."""

    recognised: RecognisedNorm
    mode: NormMode


@dataclass(frozen=True)
class Recipe:
    """How to make the subclass of ``original``: methods by name, or what its forward computes: an activation, a norm.

    ``sequence``, of a ``Sequential``, is what becomes one step in it. ``twin``: a module of PyTorch's, no curve, that
    becomes ours. ``linear``: a Linear that shares the casts of autocast. ``adapter``: the role in a LoRA layer.

    ``wrappers`` are the names of what is a static or class method or a property, with that type. Copies share a
    recipe; a pickle holds only the class and what was chosen, and the module is converted anew when it is loaded.
    """

    original: type[Module]
    methods: tuple[tuple[str, Plan], ...] = ()
    activation: Recognised | None = None
    wrappers: tuple[tuple[str, type], ...] = ()
    gated: bool = True
    norm: KeptNorm | None = None
    dropout: bool = True
    sequence: Steps | None = None
    twin: str = ""
    linear: bool = False
    adapter: str = ""

    def __deepcopy__(self, memo: Any) -> Recipe:
        return self

    def __reduce__(self) -> Any:
        chosen = frozenset(spot for _, plan in self.methods for spot in spots(plan))
        norm = None if self.norm is None else self.norm.mode
        one = self.activation is not None
        sequence = None if self.sequence is None else (self.sequence.dropouts, self.sequence.chains)
        what = one, sequence, self.gated, self.dropout, norm, self.twin, self.linear, self.adapter
        return Request, (self.original, chosen, *what)


@dataclass(frozen=True)
class Request:
    """A recipe as a pickle holds it: which places of the class's functions were converted.

    ``norm``: what a norm keeps; None for what is no norm.
    """

    original: type[Module]
    spots: frozenset[Any]
    activation: bool
    sequence: tuple[bool, bool] | None
    gated: bool
    dropout: bool
    norm: NormMode | None = None
    twin: str = ""
    linear: bool = False
    adapter: str = ""


def spots(plan: Plan) -> set[Any]:
    """The places of a plan, by the functions' names: equal in every process that runs the same source."""
    function = plan.function
    own = {(function.__module__, function.__qualname__, at) for at, _ in plan.actions}
    return own.union(*(spots(other) for other in plan.rewritten))


def is_converted(module: Module) -> bool:
    """Whether ``module`` has a class of ours."""
    return hasattr(type(module), "optiacts_recipe")


def _reduce_ex(self: Any, protocol: Any) -> Any:
    reduced: Any = self.optiacts_original.__reduce_ex__(self, max(protocol, 2))
    standard = not isinstance(reduced, str) and reduced[0] is vars(copyreg)["__newobj__"]
    if not standard or "optiacts_recipe" not in type(self).__dict__:
        return reduced
    _, arguments, *state = reduced
    return (_new, (self.optiacts_recipe, _paths.get(self, ""), *arguments[1:]), *state)


def _prepare_scriptable(self: Module) -> Module:
    raise RuntimeError(
        f"torch.jit.script cannot read the converted {type(self).__name__}; call optiacts.revert(model) first"
    )


def _described(self: Module) -> str:
    path = _paths.get(self)
    return f"{path or 'the module'} ({type(self).__name__})"


def _paths_in(self: Module, model: Module) -> set[str]:
    return {path for path, module in model.named_modules() if module is self}


# what converted modules do besides; not a base class, which would change the layout of their objects
_OWN: dict[str, Any] = {
    "__reduce_ex__": _reduce_ex,
    "__prepare_scriptable__": _prepare_scriptable,
    "_get_name": lambda self: f"OptiActs{self.optiacts_original._get_name(self)}",
    "optiacts_described": _described,
    "optiacts_paths": _paths_in,
}


def install(module: Module, recipe: Recipe, path: str = "") -> None:
    """Gives ``module`` the recipe's methods, in place. ``path`` is for error messages."""
    module.__class__ = converted_class(recipe)
    note_paths(module, recipe, path)


def note_paths(module: Module, recipe: Recipe, path: str) -> None:
    """Lets errors name ``module`` by its path."""
    _paths[module] = path
    if recipe.norm is not None:
        recognised = recipe.norm.recognised
        register(module, recognised.weight, recognised.bias, recognised.offset)
    for _, plan in recipe.methods:
        _note_path(plan, module, path)
    if recipe.sequence is not None:
        place_of_sequence(recipe).modules[module] = path


@functools.cache
def place_of_sequence(recipe: Recipe) -> Place:
    """What errors name for the modules of a recipe with a ``sequence``."""
    return Place(recipe.original.forward)  # type: ignore[arg-type]


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
    if recipe.sequence is not None:
        methods["forward"] = _unless_replaced(
            original, "forward", forward_of(recipe.sequence, place_of_sequence(recipe))
        )
    if recipe.activation is not None:
        methods["forward"] = _activation_forward(original, recipe.activation)
    if recipe.twin:
        methods["forward"] = _twin_forward(original, _TWINS[recipe.twin])
    if recipe.norm is not None:
        methods["forward"] = _norm_forward(original, *recipe.norm)
        methods["_load_from_state_dict"] = _loading_norm(original)
    if recipe.linear:
        methods["forward"] = _linear_forward(original)
    if recipe.adapter:
        methods |= adapters.methods(original, recipe.adapter)
    members = {
        **_OWN,
        **methods,
        "optiacts_recipe": recipe,
        "optiacts_original": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return quiet_subclass(original, members)


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
    curve, inplace, pins, traceable = recognised.curve, recognised.inplace, recognised.pins, recognised.traceable
    parameter = forward.__code__.co_varnames[1]

    @functools.wraps(forward)
    def activation(self: Module, *args: Any, **kwargs: Any) -> Any:
        x: Any = args[0] if args else kwargs.get(parameter)
        compiling = torch.compiler.is_compiling()
        if len(args) + len(kwargs) != 1:
            return original.forward(self, *args, **kwargs)
        if not (compiling or inplace) and torch.is_grad_enabled() and holds(pins, self) and not intercepted():
            y = functional.plain_activation(x, curves.get(curve))  # the usual case, which small calls wait for
            if y is not None:
                return made_by(y, self)  # type: ignore[arg-type]
        if (
            functional.saves_memory(x)
            and (traceable or not compiling)
            and holds(pins, self)
            and not intercepted()
            and not functional.compiles_autocast(curves.get(curve), x)
        ):
            return made_by(functional.apply(curve, x, inplace), self)  # type: ignore[arg-type]
        return original.forward(self, *args, **kwargs)

    return activation


_TWINS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "prelu": lambda module, x: functional_elementwise.prelu(x, module.weight),
    "glu": lambda module, x: functional_gated.glu(x, module.dim),
}


def _twin_forward(original: type[Module], ours: Callable[[Any, Tensor], Tensor]) -> Any:
    forward = original.forward

    @functools.wraps(forward)
    def twin(self: Module, input: Tensor) -> Any:
        if original.forward is not forward or intercepted():
            return original.forward(self, input)
        return made_by(ours(self, input), self)  # type: ignore[arg-type]

    return twin


def _linear_forward(original: type[Module]) -> Any:
    forward = original.forward

    @functools.wraps(forward)
    def linear(self: Module, *args: Any, **kwargs: Any) -> Any:
        if original.forward is not forward:
            return original.forward(self, *args, **kwargs)
        return original.forward(self, *map(casts.shared, args), **{k: casts.shared(v) for k, v in kwargs.items()})

    return linear


def _norm_forward(original: type[Module], recognised: RecognisedNorm, mode: NormMode) -> Any:
    forward = original.forward
    pins, parameter = recognised.pins, forward.__code__.co_varnames[1]
    traceable, of_torch = compilers_can_compare(pins), forward is torch.nn.LayerNorm.forward

    def form(module: Any) -> FunctionForm:
        if of_torch:
            return functional_norm.layer_norm_form(tuple(module.normalized_shape), module.eps)
        return _OwnForward(original, recognised, module)

    @functools.wraps(forward)
    def norm(self: Module, *args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        if len(args) + len(kwargs) != 1 or (compiling and not traceable):
            return original.forward(self, *args, **kwargs)
        x: Any = args[0] if args else kwargs.get(parameter)
        if of_torch and not (compiling or mode.share_cast) and functional_norm.keeps_no_more(x):
            return original.forward(self, *args, **kwargs)  # which keeps the input
        given = recognised.parameters(self) if isinstance(x, Tensor) and torch.is_grad_enabled() else None
        kind = None if given is None else recognised.kind(x, *given)
        if given is None or kind is None or not holds(pins, self) or intercepted():
            return original.forward(self, *args, **kwargs)
        if not compiling:
            y = functional_norm.plain_norm(x, *given, kind, form(self), *mode)
            if y is not None:
                return made_by(y, self)  # type: ignore[arg-type]
        if not functional_norm.saves_memory(x, *given) or not functional_norm.supports(
            x, *given, kind, mode.keep_output
        ):
            return original.forward(self, *args, **kwargs)

        def own(x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
            y: Tensor = original.forward(self, x)
            return y

        forward = own if compiling else functools.partial(form(self).of, weight=given[0], bias=given[1])
        return made_by(functional_norm.norm(x, *given, kind, forward, *mode), self)  # type: ignore[arg-type]

    return norm


class _OwnForward(FunctionForm):
    """A norm module's own forward, with no gradient: backward knows what it computes.

    What it does with tensors hangs on them, and on what the pins of the recognised norm hold, alone.
    """

    def __init__(self, original: type[Module], recognised: RecognisedNorm, module: Module) -> None:
        self.original, self.recognised, self.module = original, recognised, weakref.ref(module)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OwnForward) and self.recognised is other.recognised

    def __hash__(self) -> int:
        return hash(id(self.recognised))

    def of(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y: Tensor = self.original.forward(self.module(), x)
        return no_view(y)


def _loading_norm(original: type[Module]) -> Any:
    def load(self: Module, *args: Any, **kwargs: Any) -> None:
        original._load_from_state_dict(self, *args, **kwargs)
        loaded(self)

    return load


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

    return quiet_subclass(original, {"__setstate__": setstate, "__module__": original.__module__})
