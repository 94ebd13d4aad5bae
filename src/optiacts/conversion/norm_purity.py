"""Whether the forward of a norm is seen to be nothing but arithmetic: purity.py's reading, with what norms need.

Besides element-wise operations these are reductions, casts, views, parameters, and branches on dtypes and numbers of
dimensions. Both sides of such a branch are read, and recognition tries all dtypes and numbers of dimensions. Sizes
and devices may be handed on, but decide nothing.
"""

from __future__ import annotations

import ast
import types
from typing import Any

import torch
from torch.nn import Module, Parameter
from torch.nn import functional as F

from optiacts.conversion.purity import (
    ENDLESS,
    NUMBER,
    SCALARS,
    TENSOR,
    Body,
    ImpureError,
    Pin,
    UnknownCalleeError,
    Walk,
    hashable,
)

FORM = object()  # told by dtypes and numbers of dimensions alone
PASSED = object()  # sizes and devices, which are only handed on
_RAISES = object()  # the end of a branch that raises

_NAMES = """
add div divide mean movedim mul multiply neg negative permute pow reciprocal reshape rsqrt sqrt square sub subtract
sum transpose true_divide unsqueeze squeeze var std var_mean std_mean flatten unflatten norm layer_norm rms_norm
native_layer_norm vector_norm
""".split()
_FUSED = frozenset((F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm, torch.native_layer_norm))
_PAIRS = frozenset((torch.var_mean, torch.std_mean))
_CASTS = ("to", "float", "double", "half", "bfloat16", "type_as", "type")
_VIEWS = ("view", "view_as", "reshape_as", "expand", "expand_as", "contiguous", "size", "dim")
_OF_CONSTANTS = (len, tuple, list, range, int, float, bool, abs, min, max)


def norm_pins(function: types.FunctionType, owner: Module) -> tuple[tuple[Pin, ...], tuple[str, ...], bool]:
    """What ``function``, a method of ``owner`` as a function of one tensor, depends on besides that.

    Returns:
        The pins, the names of the parameters that it reads, and whether PyTorch's fused op is among what it calls.

    Raises:
        ImpureError: what it does besides arithmetic.
    """
    walk = _NormWalk()
    if walk.function(function, owner, [owner, TENSOR], {}, outermost=True) is not TENSOR:
        raise ImpureError("returns no tensor")
    return tuple(walk.pins), tuple(walk.parameters), walk.fused


class _NormWalk(Walk):
    def __init__(self) -> None:
        super().__init__(_NormBody)
        self.parameters: dict[str, None] = {}
        self.fused = False


class _NormBody(Body):
    atoms = frozenset(getattr(place, n) for n in _NAMES for place in (torch, F, torch.linalg) if hasattr(place, n))
    methods = frozenset((*(n for n in _NAMES if hasattr(torch.Tensor, n)), *_CASTS, *_VIEWS))
    walk: _NormWalk

    # statements

    def statements(self, body: list[ast.stmt]) -> Any:
        for number, statement in enumerate(body):
            if isinstance(statement, ast.If):
                return self._branches(statement, body[number + 1 :])
            if isinstance(statement, ast.Raise):
                return _RAISES
            result = self.statement(statement)
            if result is not ENDLESS:
                return result
        return ENDLESS

    def _branches(self, node: ast.If, rest: list[ast.stmt]) -> Any:
        test = self.value(node.test)
        if test is not FORM:
            return self.statements([*(node.body if _truth(test) else node.orelse), *rest])
        before, results = dict(self.local), []
        for branch in (node.body, node.orelse):
            self.local = dict(before)
            results.append(self.statements([*branch, *rest]))
        return _either(*results)

    def bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, tuple) and len(value) == len(target.elts):
            for element, part in zip(target.elts, value, strict=True):
                self.bind(element, part)
        else:
            super().bind(target, value)

    # expressions

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=constant) if constant is Ellipsis:
                return constant
            case ast.Tuple() | ast.List():
                return tuple(self.value(element) for element in node.elts)
            case ast.BoolOp():
                return self._all_or_any(node)
            case ast.UnaryOp(op=ast.Not()):
                operand = self.value(node.operand)
                return FORM if operand is FORM else not _truth(operand)
            case ast.IfExp():
                test = self.value(node.test)
                if test is FORM:
                    return _either(self.value(node.body), self.value(node.orelse))
                return self.value(node.body if _truth(test) else node.orelse)
            case ast.Subscript():
                return self._part(self.value(node.value), node.slice)
            case ast.Attribute():
                base = self._base(node.value)
                if base is TENSOR:
                    return _attribute(node.attr)
        return super().value(node)

    def _all_or_any(self, node: ast.BoolOp) -> Any:
        told = False
        for operand in node.values:
            value = self.value(operand)
            if value is FORM:
                told = True
            elif _truth(value) is isinstance(node.op, ast.Or):
                return FORM if told else value
        return FORM if told else value

    def _part(self, base: Any, index: ast.expr) -> Any:
        if base is PASSED:
            return PASSED
        if base is TENSOR and all(map(_whole, index.elts if isinstance(index, ast.Tuple) else [index])):
            return TENSOR
        number = self.value(index) if isinstance(base, tuple) else None
        if isinstance(number, int) and -len(base) <= number < len(base):
            return base[number]
        raise ImpureError("takes parts of tensors")

    def arithmetic(self, operands: list[ast.expr]) -> Any:
        values = [self.value(operand) for operand in operands]
        if not all(v in (TENSOR, NUMBER, PASSED, FORM) or type(v) in (int, float) for v in values):
            raise ImpureError("computes with what is neither tensor nor number")
        return next((kind for kind in (TENSOR, PASSED, FORM) if kind in values), NUMBER)

    def compared(self, node: ast.Compare) -> Any:
        left, right, operator = self.value(node.left), self.value(node.comparators[0]), node.ops[0]
        if isinstance(operator, (ast.Is, ast.IsNot)) and TENSOR in (left, right) and None in (left, right):
            return isinstance(operator, ast.IsNot)
        parts = [part for value in (left, right) for part in (value if isinstance(value, tuple) else (value,))]
        if any(part is FORM for part in parts) and all(part is FORM or _constant(part) for part in parts):
            return FORM
        if all(map(_constant, parts)):
            if isinstance(operator, (ast.In, ast.NotIn)) and isinstance(right, tuple):
                return (left in right) is isinstance(operator, ast.In)
            if isinstance(operator, (ast.Eq, ast.Is)):
                return left == right
            if isinstance(operator, (ast.NotEq, ast.IsNot)):
                return left != right
            if isinstance(operator, (ast.Gt, ast.GtE)) and all(isinstance(p, (int, float)) for p in parts):
                return left > right if isinstance(operator, ast.Gt) else left >= right
        raise ImpureError("branches on what is not constant")

    def named(self, node: ast.Name | ast.Attribute) -> Any:
        value = self.find(node).value if self._parameter(node) else None
        return TENSOR if value is not None else super().named(node)

    def constant(self, value: Any) -> bool:
        return _constant(value) or (isinstance(value, tuple) and all(map(_constant, value)))

    def find(self, node: ast.expr) -> Any:
        if self._parameter(node):
            found = self.context.find(node)
            self.walk.parameters[found.path[0]] = None
            return found
        return super().find(node)

    def _parameter(self, node: ast.expr) -> bool:
        """Whether an expression is a parameter of the module: it may change, its name is what is known of it."""
        try:
            found = self.context.find(node)
        except LookupError:
            return False
        return found.root is None and len(found.path) == 1 and isinstance(found.value, Parameter)

    def _base(self, node: ast.expr) -> Any:
        """What an attribute is read of, if it is a tensor or told by one; None for modules and the like."""
        if isinstance(node, ast.Name):
            return self.local.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.value(node) if self._base(node.value) is TENSOR or self._parameter(node) else None
        return None if _is_super(node) else self.value(node)

    def is_tensor(self, node: ast.expr) -> bool:
        return self._base(node) is TENSOR

    # calls

    def call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute):
            if _is_super(node.func.value):
                return self._inherited(node.func.attr, node)
            if self.is_tensor(node.func.value) and node.func.attr in ("size", "dim"):
                return FORM if node.func.attr == "dim" else PASSED
        return super().call(node)

    def _inherited(self, name: str, node: ast.Call) -> Any:
        """``super().name(...)`` in a method."""
        owner, function = self.context.owner, self.context.function
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if owner is None or "__class__" not in cells or node.keywords:
            raise ImpureError("calls super() in a way that is not known")
        kinds = list(getattr(type(owner), "optiacts_original", type(owner)).__mro__)
        later = kinds[kinds.index(cells["__class__"].cell_contents) + 1 :]
        kind = next((kind for kind in later if name in vars(kind)), None)
        method = None if kind is None else vars(kind)[name]
        if not isinstance(method, types.FunctionType):
            raise ImpureError(f"calls super().{name}(), whose code is not seen")
        self.pin(kind, (name,), method)
        self.pin_code(method)
        return self.walk.function(method, owner, [owner, *map(self.value, node.args)], {})

    def called(self, callee: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if hashable(callee) and callee in _FUSED:
            self.walk.fused = True
        if hashable(callee) and callee in _PAIRS:
            self.atom([*arguments, *keywords.values()])
            return TENSOR, TENSOR
        if hashable(callee) and callee in _OF_CONSTANTS and not keywords:
            return _of_constants(callee, arguments)
        if isinstance(callee, types.FunctionType) and arguments and arguments[0] is self.context.owner is not None:
            self.pin_code(callee)  # Class.method(self, ...)
            return self.walk.function(callee, self.context.owner, arguments, keywords)
        if not isinstance(callee, (types.FunctionType, types.MethodType)) and not hashable(callee):
            raise UnknownCalleeError
        return super().called(callee, arguments, keywords)

    def autograd(self, function: type[torch.autograd.Function], values: list[Any]) -> Any:
        raise ImpureError("calls an autograd Function")

    def atom(self, values: list[Any]) -> Any:
        for value in values:
            for part in value if isinstance(value, tuple) else (value,):
                if part not in (TENSOR, NUMBER, FORM, PASSED) and not _constant(part):
                    raise ImpureError("computes with what is neither tensor nor number")
        if any(value is TENSOR for value in values):
            return TENSOR
        raise ImpureError("computes with tensors that do not depend on its argument")


def _constant(value: Any) -> bool:
    return isinstance(value, (*SCALARS, torch.dtype))


def _truth(value: Any) -> bool:
    if _constant(value):
        return bool(value)
    raise ImpureError("branches on what is not constant")


def _either(one: Any, other: Any) -> Any:
    """What either of two branches yields."""
    if one is _RAISES or other is _RAISES:
        return other if one is _RAISES else one
    if one is other or (_constant(one) and type(one) is type(other) and one == other):
        return one
    if all(value is FORM or _constant(value) for value in (one, other)):
        return FORM
    raise ImpureError("branches on what is not constant")


def _attribute(name: str) -> Any:
    """An attribute of a tensor."""
    if name in ("dtype", "ndim"):
        return FORM
    if name in ("shape", "device"):
        return PASSED
    raise ImpureError(f"reads .{name} of a tensor")


def _of_constants(callee: Any, arguments: list[Any]) -> Any:
    if callee is len and arguments == [PASSED]:
        return FORM  # the number of dimensions
    if any(argument is PASSED for argument in arguments):
        return PASSED
    if all(_constant(a) or (isinstance(a, tuple) and all(map(_constant, a))) for a in arguments):
        result = callee(*arguments)
        return tuple(result) if isinstance(result, (list, range)) else result
    raise ImpureError("computes with what is neither tensor nor number")


def _whole(index: ast.expr) -> bool:
    """``...``, ``None`` or ``:`` in a subscript."""
    if isinstance(index, ast.Slice):
        return index.lower is index.upper is index.step is None
    return isinstance(index, ast.Constant) and index.value in (None, Ellipsis)


def _is_super(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "super"
        and not node.args
        and not node.keywords
    )
