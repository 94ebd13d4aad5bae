"""Whether a function of one tensor is seen to be nothing but arithmetic, and what it depends on.

Accepted is a text that only computes: numbers, element-wise operations of torch, other such functions. Whatever
could make one call differ from another is either not accepted (sizes, dtypes, ``self.training``, randomness, anything
stored, anything unknown) or *pinned*: names and attributes are recorded with the values they have, to be compared
when the function is called.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import Module
from torch.nn import functional as F

from optiacts import functional as ours
from optiacts import host
from optiacts._torch import seen
from optiacts.conversion.lookup import Context, Found, UnknownError
from optiacts.conversion.source import UnseenError, source_of
from optiacts.conversion.syntax import text


class ImpureError(Exception):
    """What a function does besides arithmetic."""


class UnknownCalleeError(Exception):
    """Called is what no body knows; who called it says what."""


class Pin(NamedTuple):
    """A value that has to be the same when the function is called: that of ``path`` from ``root`` on.

    ``root`` is a globals dictionary, a cell, a class, the position of a cell in the function's own closure, or None
    for the module that the function is the forward of.
    """

    root: Any
    path: tuple[str, ...]
    value: Any


_NAMES = """
abs absolute add atan clamp clamp_max clamp_min cos cosh div divide erf erfc exp exp2 expm1 log log10 log1p log2
logaddexp maximum minimum mul multiply neg negative pow reciprocal relu rsqrt sigmoid sin sinh sqrt square sub
subtract tanh true_divide where celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish
relu6 selu silu softplus softshrink softsign tanhshrink threshold clip expit log_ndtr ndtr
""".split()
_PLACES = (torch, F, torch.special, torch.ops.aten)
_ATOMS = frozenset(getattr(place, name) for name in _NAMES for place in _PLACES if hasattr(place, name)) | {
    getattr(torch.ops.aten, name).default for name in ("gelu", "silu", "mish", "relu", "sigmoid", "tanh")
}
_ATOMS |= {ours.gelu, ours.silu, ours.mish, ours.quick_gelu}
_METHODS = frozenset(name for name in _NAMES if hasattr(torch.Tensor, name))
_NUMBERS = frozenset(value for value in vars(math).values() if callable(value)) | {float, int, abs, max, min, pow}
SCALARS = (int, float, str, bool, type(None))

TENSOR, NUMBER, _SAVED, _CONTEXT = object(), object(), object(), object()
_DEEPEST = 8


def pins_of(
    function: types.FunctionType,
    owner: Module | None = None,
    given: tuple[Any, ...] = (),
    options: dict[str, Any] | None = None,
) -> tuple[Pin, ...]:
    """What ``function``, as a function of a tensor alone, depends on; ``ImpureError`` says why it is not pure.

    Args:
        function: a plain function or, with ``owner``, a method of that module.
        owner: the module that the method is called on.
        given, options: constants that it is called with besides the tensor.
    """
    walk = Walk()
    arguments: list[Any] = [*given, TENSOR] if owner is None else [owner, TENSOR]
    if not all(isinstance(value, SCALARS) for value in (*given, *(options or {}).values())):
        raise ImpureError("takes something else than numbers")
    if walk.function(function, owner, arguments, options or {}, outermost=True) is not TENSOR:
        raise ImpureError("returns no tensor")
    return tuple(walk.pins)


def pins_of_expression(
    function: types.FunctionType,
    owner: Module | None,
    expression: ast.expr,
    variable: str,
    numbers: Mapping[str, float],
) -> tuple[Pin, ...]:
    """The same of an expression in ``function`` that computes from one local variable and ``numbers``."""
    walk = Walk()
    context = Context(function, owner)
    local: dict[str, Any] = {variable: TENSOR, **numbers}
    if Body(walk, context, local, outermost=False).value(expression) is not TENSOR:
        raise ImpureError("is no tensor")
    return tuple(walk.pins)


class Walk:
    """One function and all that it calls, read by bodies of one class."""

    def __init__(self, body: type[Body] | None = None) -> None:
        self.pins: list[Pin] = []
        self._body = body or Body
        self._depth = 0

    def function(
        self,
        function: types.FunctionType,
        owner: Any,
        arguments: list[Any],
        keywords: dict[str, Any],
        outermost: bool = False,
    ) -> Any:
        """The kind of value that a call returns."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ImpureError("calls too deep")
        try:
            source = source_of(function)
            local = _bound(function, arguments, keywords)
        except (UnseenError, TypeError, ValueError) as error:
            raise ImpureError(str(error)) from error
        body = self._body(self, Context(function, owner), local, outermost)
        result = body.run(source.node)
        self._depth -= 1
        return result


class Body:
    """One function's text."""

    atoms: frozenset[Any] = _ATOMS  # functions of torch that only compute
    methods: frozenset[str] = _METHODS  # and methods of tensors

    def __init__(self, walk: Walk, context: Context, local: dict[str, Any], outermost: bool) -> None:
        self.walk, self.context, self.local, self.outermost = walk, context, local, outermost

    def run(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Any:
        if isinstance(node, ast.Lambda):
            return self.value(node.body)
        if isinstance(node, ast.AsyncFunctionDef):
            raise ImpureError("is a coroutine")
        result = self.statements(node.body)
        return None if result is ENDLESS else result

    def statements(self, body: list[ast.stmt]) -> Any:
        for statement in body:
            result = self.statement(statement)
            if result is not ENDLESS:
                return result
        return ENDLESS

    def statement(self, node: ast.stmt) -> Any:
        if isinstance(node, ast.Return) and node.value is not None:
            return self.value(node.value)
        if isinstance(node, ast.If):
            return self.statements(node.body if self.truth(node.test) else node.orelse)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return ENDLESS  # a docstring
        if isinstance(node, ast.Expr) and self._saves(node.value):
            return ENDLESS
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            value = self.value(node.value)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self.bind(target, value)
            return ENDLESS
        raise ImpureError(f"does more than compute (line {node.lineno})")

    def bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.local[target.id] = value
        elif isinstance(target, ast.Tuple) and value is _SAVED:
            for element in target.elts:
                self.bind(element, TENSOR)
        else:
            raise ImpureError(f"does more than compute (line {target.lineno})")

    def _saves(self, node: ast.expr) -> bool:
        """``ctx.save_for_backward(...)`` in an autograd Function."""
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "save_for_backward"
            and self.value(node.func.value) is _CONTEXT
            and all(self.value(argument) is TENSOR for argument in node.args)
        )

    def truth(self, test: ast.expr) -> bool:
        value = self.value(test)
        if isinstance(value, SCALARS):
            return bool(value)
        raise ImpureError("branches on what is not constant")

    def value(self, node: ast.expr) -> Any:
        """A constant's value, or the kind of what the expression computes."""
        if isinstance(node, ast.Constant) and isinstance(node.value, SCALARS):
            return node.value
        if isinstance(node, ast.Name) and node.id in self.local:
            return self.local[node.id]
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self.named(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.BinOp) and not isinstance(node.op, (ast.MatMult, ast.FloorDiv, ast.Mod)):
            return self.arithmetic([node.left, node.right])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self.truth(node.operand)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            return self.arithmetic([node.operand])
        if isinstance(node, ast.IfExp):
            return self.value(node.body if self.truth(node.test) else node.orelse)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self.compared(node)
        if isinstance(node, ast.Subscript) and self.value(node.value) is _SAVED:
            return TENSOR
        raise ImpureError(f"does more than compute (line {node.lineno})")

    def arithmetic(self, operands: list[ast.expr]) -> Any:
        values = [self.value(operand) for operand in operands]
        if any(value is not TENSOR and value is not NUMBER and type(value) not in (int, float) for value in values):
            raise ImpureError("computes with what is neither tensor nor number")
        return TENSOR if any(value is TENSOR for value in values) else NUMBER

    def compared(self, node: ast.Compare) -> bool:
        left, right, operator = self.value(node.left), self.value(node.comparators[0]), node.ops[0]
        if isinstance(left, SCALARS) and isinstance(right, SCALARS):
            if isinstance(operator, (ast.Eq, ast.Is)):
                return left == right
            if isinstance(operator, (ast.NotEq, ast.IsNot)):
                return left != right
        raise ImpureError("branches on what is not constant")

    def named(self, node: ast.Name | ast.Attribute) -> Any:
        if isinstance(node, ast.Attribute) and _root(node) in self.local:
            base = self.value(node.value) if not isinstance(node.value, ast.Attribute) else None
            if base is TENSOR:
                raise ImpureError(f"reads .{node.attr} of a tensor")
            if base is _CONTEXT and node.attr == "saved_tensors":
                return _SAVED
        found = self.find(node)
        if found.path[-1:] == ("training",) and found.root is None:
            raise ImpureError("reads self.training")
        if not self.constant(found.value):
            raise ImpureError(f"reads {text(node)}")
        return found.value

    def constant(self, value: Any) -> bool:
        """Whether a value may be read, to be the same ever after."""
        return isinstance(value, SCALARS)

    def find(self, node: ast.expr) -> Found:
        """The value of a name or attribute, pinned."""
        try:
            found = self.context.find(node)
        except UnknownError as error:
            raise ImpureError(f"uses {text(node)}, which is not known") from error
        root, path, value, owner = found.root, found.path, found.value, self.context.owner
        if self.outermost and isinstance(root, types.CellType):
            closure = self.context.function.__closure__ or ()
            root = next(i for i, cell in enumerate(closure) if cell is root)
        # what is made anew with each copy of a model is pinned by its parts
        if _function_applied(value) is not None:
            self.pin(root, path[:-1], value.__self__)
        elif isinstance(value, types.MethodType) and value.__self__ is owner is not None:
            self.pin(root, (*path, "__func__"), value.__func__)
            if path[-1] in owner.__dict__:
                self.pin(root, (*path, "__self__"), OWNER)
        elif isinstance(value, functools.partial):
            for part in ("func", "args", "keywords"):
                stands = getattr(value, part)
                self.pin(root, (*path, part), dict(stands) if isinstance(stands, dict) else stands)
        else:
            self.pin(root, path, value)
        return found

    def pin(self, root: Any, path: tuple[str, ...], value: Any) -> None:
        self.walk.pins.append(Pin(root, path, value))

    def call(self, node: ast.Call) -> Any:
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            raise ImpureError("passes arguments on")
        arguments = [self.value(argument) for argument in node.args]
        keywords = {str(k.arg): self.value(k.value) for k in node.keywords}
        if isinstance(node.func, ast.Attribute) and self.is_tensor(node.func.value):
            if node.func.attr not in self.methods:
                raise ImpureError(f"calls .{node.func.attr}()")
            return self.atom([TENSOR, *arguments, *keywords.values()])
        try:
            return self.called(self.find(node.func).value, arguments, keywords)
        except UnknownCalleeError as error:
            raise ImpureError(f"calls {text(node.func)}, which is not known to be pure") from error

    def called(self, callee: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        owner, values = self.context.owner, [*arguments, *keywords.values()]
        if isinstance(callee, functools.partial):
            return self.called(callee.func, [*callee.args, *arguments], {**callee.keywords, **keywords})
        if hashable(callee) and callee in self.atoms:
            return self.atom(values)
        if hashable(callee) and callee in _NUMBERS:
            if any(value is not NUMBER and type(value) not in (int, float) for value in values):
                raise ImpureError("takes a tensor for a number")
            return NUMBER
        function = _function_applied(callee)
        if function is not None:
            return self.autograd(function, values)
        if isinstance(callee, types.MethodType) and callee.__self__ is owner is not None:
            method: Any = callee.__func__
            return self.walk.function(method, owner, [owner, *arguments], keywords)
        if isinstance(callee, types.FunctionType):
            self.pin_code(callee)
            return self.walk.function(callee, None, arguments, keywords)
        if isinstance(callee, Module) and not seen(callee) and not (callee._parameters or callee._buffers):
            return self.module(callee, arguments, keywords)
        raise UnknownCalleeError

    def module(self, callee: Module, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """A module that stands on its own, such as a global one."""
        forward = type(callee).forward
        if not isinstance(forward, types.FunctionType):
            raise UnknownCalleeError
        self.pin(type(callee), ("forward",), forward)
        self.pin_code(forward)
        before = len(self.walk.pins)
        result = self.walk.function(forward, callee, [callee, *arguments], keywords)
        for number in range(before, len(self.walk.pins)):
            pin = self.walk.pins[number]
            if pin.root is None:
                if pin.value is OWNER:
                    raise UnknownCalleeError
                self.walk.pins[number] = pin._replace(root=callee)
        return result

    def pin_code(self, function: types.FunctionType) -> None:
        for part in ("__code__", "__defaults__", "__kwdefaults__"):
            value = getattr(function, part)
            self.pin(function, (part,), dict(value) if isinstance(value, dict) else value)

    def atom(self, values: list[Any]) -> Any:
        """An element-wise operation of torch. Options such as ``approximate`` are constants."""
        if any(value is not TENSOR and value is not NUMBER and not isinstance(value, SCALARS) for value in values):
            raise ImpureError("computes with what is neither tensor nor number")
        if any(value is TENSOR for value in values):
            return TENSOR
        raise ImpureError("computes with tensors that do not depend on its argument")

    def autograd(self, function: type[torch.autograd.Function], values: list[Any]) -> Any:
        """``Function.apply(x)``, of one that saves its input and differentiates it in plain arithmetic."""
        if values != [TENSOR]:
            raise ImpureError("calls an autograd Function of more than one tensor")
        for name in ("forward", "backward"):
            method = inspect.getattr_static(function, name)
            if not isinstance(method, staticmethod) or not isinstance(method.__func__, types.FunctionType):
                raise ImpureError("calls an autograd Function of unknown form")
            self.pin(function, (name,), method.__func__)
            inner: types.FunctionType = method.__func__
            self.pin_code(inner)
            if self.walk.function(inner, None, [_CONTEXT, TENSOR], {}) is not TENSOR:
                raise ImpureError("calls an autograd Function of unknown form")
        return TENSOR

    def is_tensor(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return self.local.get(node.id) is TENSOR
        return isinstance(node, (ast.Call, ast.BinOp, ast.UnaryOp)) and self.value(node) is TENSOR


def _bound(function: types.FunctionType, arguments: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """What a function's parameters are in a call; ``TypeError`` if it does not take these arguments."""
    code = function.__code__
    more = code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    if not keywords and not more and len(arguments) == code.co_argcount:  # as nearly always; a signature takes long
        return dict(zip(code.co_varnames, arguments, strict=False))
    bound = inspect.signature(function, follow_wrapped=False).bind(*arguments, **keywords)
    bound.apply_defaults()
    return dict(bound.arguments)


ENDLESS = object()  # no return so far


# Both are told by their types: to a compiler a number that it has made a symbol of can be no other object.


class _Gone:
    """What is not there any more."""


_GONE = _Gone()


class _Owner:
    """As a pinned value: the module itself."""


OWNER = _Owner()


_TYPES = types.CellType, Module
_holds_in_c: Any = None if host.lacking() is not None else host.module().holds
"""``holds`` in csrc/host/pins.cpp: most converted modules ask in every call."""


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def hashable(value: Any) -> bool:
    return isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)) or type(value).__module__ in (
        "torch._ops",
        "builtins",
    )


def _function_applied(callee: Any) -> type[torch.autograd.Function] | None:
    """The autograd Function whose ``apply`` this is."""
    owner = getattr(callee, "__self__", None) if isinstance(callee, types.MethodType) else None
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner
    return None


def holds(pins: tuple[Pin, ...], callee: Any) -> bool:
    """Whether everything that ``callee`` depends on is as it was. Compilers trace this, and guard what it reads."""
    if _holds_in_c is not None and not torch.compiler.is_compiling():
        found: bool = _holds_in_c(pins, callee, _TYPES, OWNER, seen)
        return found
    for root, path, value in pins:
        if root is None:
            now = callee
        elif isinstance(root, int):
            now = callee.__closure__[root].cell_contents
        elif isinstance(root, types.CellType):
            now = root.cell_contents
        elif isinstance(root, dict):
            if path[0] not in root:
                return False
            now, path = root[path[0]], path[1:]
        else:
            now = root
        for name in path:
            if name == "__func__" and isinstance(now, types.MethodType):
                now = now.__func__  # compilers do not find it by getattr
            else:
                now = getattr(now, name, _GONE)
        if isinstance(now, _Gone):
            return False
        if isinstance(value, _Owner):
            if now is not callee:
                return False
        elif not (now is value or _equal(now, value)) or (isinstance(now, Module) and seen(now)):
            return False
    return True


def _equal(a: Any, b: Any) -> bool:
    """Equal constants of one type; not the two zeros, which compute differently."""
    return type(a) is type(b) and type(b) in (int, float, str, tuple, dict) and a == b and a != 0
