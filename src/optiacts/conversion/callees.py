"""Which objects an expression in a function may stand for: the possible callees of a call."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch.nn import Module, ModuleDict, ModuleList, Sequential

from optiacts.conversion.lookup import Context, UnknownError, attribute
from optiacts.conversion.source import source_of

# methods of tables and containers: TABLE.get(key, default), self.layers.children()
_SEARCHES = frozenset(("get", "get_interface", "pop", "values", "items", "children", "named_children"))
_MOST = 4096  # elements of a container that are looked at


class Scope:
    """A function's tree, with what its names and attributes may stand for.

    Raises ``UnseenError`` where the source is not what runs.
    """

    def __init__(self, function: types.FunctionType, owner: Module | None = None) -> None:
        self.function = function
        self.owner = owner
        self.source = source_of(function)
        self.node, self.calls, self.bound = self.source.node, self.source.calls, self.source.bound
        self.context = Context(function, owner)
        self._met: dict[int, list[Any]] = {}

    def objects(self, node: ast.expr) -> list[Any]:
        """The objects that ``node`` may stand for, as far as they can be told; of containers their elements."""
        found = self._met.get(id(node))
        if found is None:
            distinct = {id(value): value for value in self._values(node, frozenset())}
            found = self._met[id(node)] = list(distinct.values())
        return found

    def one(self, node: ast.expr) -> Any:
        """The one object that a global name, or attributes of one, stand for; None if that is not known."""
        if root_name(node) in self.bound and root_name(node) != self.context.self_name:
            return None
        try:
            return self.context.find(node).value
        except UnknownError:
            return None

    def _makes(self, node: ast.Call) -> bool:
        """Whether a call makes one of torch's own activation modules, as ``nn.GELU()(x)`` does."""
        kind = self.one(node.func)
        return isinstance(kind, type) and kind.__module__ == "torch.nn.modules.activation"

    def _values(self, node: ast.expr, seen: frozenset[str]) -> Iterator[Any]:
        if isinstance(node, ast.Name) and node.id in self.bound and node.id != self.context.self_name:
            if node.id not in seen:
                for name, value in self.source.assigned:
                    if name == node.id:
                        yield from self._values(value, seen | {node.id})
                yield from self._imported(node.id)
                yield from self._default(node.id)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            yield from self._named(node, seen)
        elif isinstance(node, ast.Subscript):
            yield from self._values(node.value, seen)
        elif isinstance(node, ast.IfExp):
            yield from self._values(node.body, seen)
            yield from self._values(node.orelse, seen)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                yield from self._values(value, seen)
        elif isinstance(node, ast.NamedExpr):
            yield from self._values(node.value, seen)
        elif isinstance(node, (ast.Tuple, ast.List)):
            for element in node.elts:
                yield from self._values(element, seen)
        elif isinstance(node, ast.Call):
            yield from self._returned(node, seen)

    def _named(self, node: ast.Name | ast.Attribute, seen: frozenset[str]) -> Iterator[Any]:
        if isinstance(node, ast.Attribute) and _is_super(node.value):
            yield from self._inherited(node.attr)
            return
        if root_name(node) in self.bound and root_name(node) != self.context.self_name:
            assert isinstance(node, ast.Attribute)
            for base in self._values(node.value, seen):  # an attribute of what a local variable stands for
                try:
                    yield from _elements(attribute(base, node.attr))
                except UnknownError:
                    continue
            return
        try:
            yield from _elements(self.context.find(node).value)
        except UnknownError:
            return

    def _imported(self, name: str) -> Iterator[Any]:
        """What an import in the function gives: of modules that are imported already."""
        module, attribute_name = self.source.imported.get(name, ("", ""))
        if module.startswith("."):
            package = self.function.__globals__.get("__package__") or ""
            with contextlib.suppress(ImportError):
                module = importlib.util.resolve_name(module, package)
        found = sys.modules.get(module)
        if found is not None:
            with contextlib.suppress(UnknownError):
                yield from _elements(attribute(found, attribute_name) if attribute_name else found)

    def _default(self, name: str) -> Iterator[Any]:
        """What a parameter is unless the caller says otherwise."""
        code = self.function.__code__
        positional = code.co_varnames[: code.co_argcount]
        defaults = self.function.__defaults__ or ()
        values = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
        values |= self.function.__kwdefaults__ or {}
        if name in values:
            yield from _elements(values[name])

    def _inherited(self, name: str) -> Iterator[Any]:
        """``super().name``: that of the class after the one in whose body the function stands."""
        cells = dict(zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=True))
        if "__class__" not in cells or self.owner is None:
            return
        kinds = type(self.owner).__mro__
        here = cells["__class__"].cell_contents
        for kind in kinds[kinds.index(here) + 1 :] if here in kinds else ():
            if name in vars(kind):
                found = vars(kind)[name]
                if isinstance(found, types.FunctionType):
                    yield types.MethodType(found, self.owner)
                return

    def _returned(self, node: ast.Call, seen: frozenset[str]) -> Iterator[Any]:
        """What a call may return that can be called: an attribute by name, or an element of what it searches."""
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) >= 2:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield from self._values(ast.Attribute(node.args[0], name.value, ast.Load()), seen)
            for default in node.args[2:]:
                yield from self._values(default, seen)
        elif self._makes(node):
            options = {str(k.arg): k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if len(options) == len(node.keywords) and not node.args:
                yield from _made((self.one(node.func), options))
        elif isinstance(node.func, ast.Attribute) and node.func.attr in _SEARCHES:
            yield from self._values(node.func.value, seen)
            for argument in node.args:
                yield from self._values(argument, seen)
        elif isinstance(node.func, ast.Name) and node.func.id in ("enumerate", "zip", "reversed", "iter", "list"):
            for argument in node.args:
                yield from self._values(argument, seen)


def _elements(value: Any) -> Iterator[Any]:
    """``value`` itself if it can be called, the elements if it is a container."""
    if isinstance(value, (ModuleList, ModuleDict)):
        for child in value.children():
            yield from _elements(child) if isinstance(child, (ModuleList, ModuleDict)) else (child,)
    elif isinstance(value, Sequential):
        yield value
    elif isinstance(value, dict):
        for element in list(dict.values(value))[:_MOST]:
            makes = type(value) is not dict and "__getitem__" in vars(type(value))
            yield from _made(element) if makes else (element,)
    elif isinstance(value, (list, tuple)):
        yield from value[:_MOST]
    elif callable(value) or isinstance(value, types.ModuleType):
        yield value


def _made(element: Any) -> Iterator[Any]:
    """What a table that makes its elements when asked (transformers' ACT2FN) makes of a class or (class, options)."""
    kind, options = element if isinstance(element, tuple) and len(element) == 2 else (element, {})
    if isinstance(kind, type) and issubclass(kind, Module) and isinstance(options, dict):
        with contextlib.suppress(Exception):
            yield kind(**options)


def root_name(node: ast.expr) -> str:
    """The name that a chain of attributes and subscripts starts at."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
