"""What a name in a function stands for now, found without running anything of the user's."""

from __future__ import annotations

import ast
import builtins
import inspect
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module, Parameter

Path = tuple[str, ...]
MISSING = object()


class UnknownError(LookupError):
    """The expression has no value that could be told without running code."""


@dataclass(frozen=True)
class Found:
    """A value, and where it was read: ``path`` are attributes from ``root`` on.

    ``root`` is a globals dictionary, a closure cell, or None for the object that the method belongs to.
    """

    value: Any
    root: Any
    path: Path


@dataclass(frozen=True, eq=False)
class Context:
    """A function, and the object that its first argument is, if it is a method."""

    function: types.FunctionType
    owner: Any = None

    @property
    def self_name(self) -> str | None:
        """The name of the first argument of a method."""
        code = self.function.__code__
        return code.co_varnames[0] if self.owner is not None and code.co_argcount else None

    def find(self, node: ast.expr) -> Found:
        """The value of a name, or of attributes of one; ``UnknownError`` if it has none that is known."""
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            base = self.find(node.value)
            return Found(attribute(base.value, node.attr), base.root, (*base.path, node.attr))
        raise UnknownError

    def _name(self, name: str) -> Found:
        code = self.function.__code__
        if name == self.self_name:
            return Found(self.owner, None, ())
        if name in code.co_freevars:
            cell = (self.function.__closure__ or ())[code.co_freevars.index(name)]
            try:
                return Found(cell.cell_contents, cell, ())
            except ValueError as error:
                raise UnknownError from error
        if name in code.co_varnames or name in code.co_cellvars:
            raise UnknownError  # a local variable
        for namespace in (self.function.__globals__, vars(builtins)):
            if name in namespace:
                return Found(namespace[name], namespace, (name,))
        raise UnknownError


def attribute(value: Any, name: str) -> Any:
    """``value.name`` where reading it runs no code of the user's; ``UnknownError`` otherwise."""
    if isinstance(value, Module):
        found = module_attribute(value, name)
    elif isinstance(value, (types.ModuleType, torch._ops._OpNamespace, torch._ops._Ops, torch._ops.OpOverloadPacket)):
        found = getattr(value, name, MISSING)
    elif name == "apply" and isinstance(value, type) and issubclass(value, torch.autograd.Function):
        return value.apply
    else:
        found = inspect.getattr_static(value, name, MISSING)
        if isinstance(found, types.FunctionType) and not isinstance(value, type):
            found = types.MethodType(found, value)
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__ if isinstance(found, staticmethod) else MISSING
    if found is MISSING or isinstance(found, (property, types.MemberDescriptorType, types.GetSetDescriptorType)):
        raise UnknownError
    return found


def module_attribute(module: Module, name: str) -> Any:
    """What ``module.name`` is: its own attribute, child or parameter, else its class's; ``MISSING`` if nothing."""
    own = module.__dict__
    if name in own:
        return own[name]
    for kind in ("_modules", "_parameters", "_buffers"):
        if name in own.get(kind, ()):
            return own[kind][name]
    found = inspect.getattr_static(type(module), name, MISSING)
    if isinstance(found, types.FunctionType):
        return types.MethodType(found, module)
    if isinstance(found, Parameter):
        return MISSING
    return found
