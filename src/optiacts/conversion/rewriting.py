"""Functions with single expressions replaced, made from a plan. Equal plans give one function object."""

from __future__ import annotations

import ast
import functools
import types
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.nn import Module

from optiacts.conversion.dropouts import dropped_by
from optiacts.conversion.known import Known
from optiacts.conversion.products import factors_of
from optiacts.conversion.recognition import Recognised
from optiacts.conversion.runtime import PREFIX, helpers
from optiacts.conversion.source import Function, Position, position, rebuilt, replaced


class Written(NamedTuple):
    """An activation that is written out: where, in which variable, or with that name for the operand that stands at a
    position in it.
    """

    at: Position
    variable: str
    operand: Position | None
    recognised: Recognised


@dataclass(frozen=True)
class Plan:
    """What is replaced in a function.

    ``actions`` are pairs of an expression's position and the helper that takes its place, ``begin`` for an
    activation that waits for its product. ``written`` are activations written out;
    ``rewritten`` are the plans of other functions that it calls; ``waiting`` of functions that return an activation's
    output: as they are otherwise, and as they are for a product.
    """

    function: types.FunctionType
    actions: tuple[tuple[Position, str], ...]
    known: tuple[Known, ...]
    written: tuple[Written, ...]
    rewritten: tuple[Plan, ...]
    waiting: tuple[tuple[Plan | None, Plan], ...]
    method: bool


class Place:
    """The function of a plan, as error messages name it, with the modules that run it."""

    def __init__(self, function: types.FunctionType) -> None:
        self._name = f"{function.__qualname__}() in {function.__module__}"
        self.modules: weakref.WeakKeyDictionary[Module, str] = weakref.WeakKeyDictionary()

    def optiacts_described(self) -> str:
        paths = list(dict.fromkeys(self.modules.values()))
        shown = ", ".join(path or "the model itself" for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
        return f"{shown} ({self._name})" if paths else self._name

    def optiacts_paths(self, model: Module) -> set[str]:
        return {path for path, module in model.named_modules() if module in self.modules}


@functools.cache
def place_of(plan: Plan) -> Place:
    """The one place of all equal plans."""
    return Place(plan.function)


@functools.cache
def build(plan: Plan) -> types.FunctionType:
    """The function that the plan describes."""
    written_at = {written.at: (number, written) for number, written in enumerate(plan.written)}
    owner = plan.function.__code__.co_varnames[0] if plan.method and plan.function.__code__.co_argcount else None
    edit = _Edit(dict(plan.actions), written_at, owner)
    others = tuple((other.function, build(other)) for other in plan.rewritten)
    waiting = [(later.function, build(later)) for _, later in plan.waiting]
    waiting += [(build(plain), build(later)) for plain, later in plan.waiting if plain is not None]
    written = tuple(written.recognised for written in plan.written)
    names = helpers(plan.known, others, tuple(waiting), written, place_of(plan))
    return rebuilt(plan.function, edit, names)


class _Edit(ast.NodeTransformer):
    """Replaces the expressions of a plan."""

    def __init__(
        self, actions: dict[Position, str], written: dict[Position, tuple[int, Written]], owner: str | None
    ) -> None:
        self._actions, self._written, self._owner = actions, written, owner

    def __call__(self, node: Function) -> None:
        if isinstance(node, ast.Lambda):
            node.body = self.visit(node.body)
        else:
            node.body = [self.visit(statement) for statement in node.body]

    def visit(self, node: ast.AST) -> Any:
        at = position(node) if isinstance(node, (ast.expr, ast.AugAssign)) else None
        helper = self._actions.get(at) if at is not None else None
        if helper is None or (isinstance(node, ast.AugAssign) != (helper == "into")):
            return self.generic_visit(node)
        assert at is not None and isinstance(node, (ast.expr, ast.AugAssign))
        if at in self._written:
            return ast.copy_location(self._evaluated(node, *self._written[at], helper), node)
        self.generic_visit(node)
        return ast.copy_location(self._replaced(node, helper), node)

    def _evaluated(self, node: Any, number: int, written: Written, helper: str) -> ast.expr:
        """An expression of one variable, handed over as a function of it, and the numbers that it depends on."""
        arguments = ast.arguments([], [ast.arg(written.variable)], None, [], [], None, [])
        numbers = [name for name, _ in written.recognised.numbers]
        operand: ast.expr = _name(written.variable)
        if written.operand is not None:
            (inner,) = (n for n in ast.walk(node) if isinstance(n, ast.expr) and position(n) == written.operand)
            node, operand = replaced(node, written.operand, written.variable), self.visit(inner)
        values: list[ast.expr] = [ast.Constant(number), ast.Lambda(arguments, node), operand]
        if self._owner is not None or numbers:
            values.append(ast.Constant(None) if self._owner is None else _name(self._owner))
        values += map(_name, numbers)
        return _call("begin_evaluate" if helper.startswith("begin") else "evaluate", *values)

    def _replaced(self, node: Any, helper: str) -> ast.AST:
        if helper == "class_of":
            return _call(helper, node.args[0] if isinstance(node, ast.Call) else node.value)
        if helper == "permuted":
            return _call(helper, node.func.value, *node.args)
        if helper == "clamp_method":
            called = _call(helper, node.func.value, ast.Constant(node.func.attr), *node.args)
            called.keywords = node.keywords
            return called
        if helper == "call" and _is_alone(node) and _calls(node.args[0], "begin_norm"):  # nothing runs in between
            norm = node.args[0]
            called = _call("chain", node.func, *norm.args)
            called.keywords = norm.keywords
            return called
        if helper in ("call", "begin", "begin_dropped", "begin_norm", "through", "clamp", "glu"):
            called = _call(helper, node.func, *node.args)
            called.keywords = node.keywords
            return called
        if helper == "drop":
            dropped = dropped_by(node)
            called = _call(helper, node.func, *([dropped] if dropped is not None else []), *node.args[1:])
            called.keywords = [k for k in node.keywords if k.arg != "input"]
            return called
        how = next((prefix for prefix in ("later_", "unkept_") if helper.startswith(prefix)), "")
        helper = helper.removeprefix(how)
        if helper in ("product", "product_right"):
            return _call(how + helper, node.left, node.right)
        if helper == "into":
            target = ast.Name(node.target.id, ast.Store())
            return ast.Assign([target], _call("product_into", _name(node.target.id), node.value))
        if helper in ("product_by", "product_by_right"):
            return _call(how + "product_by", node.func, *factors_of(node))
        return _call(how + "product_method", node.func.value, ast.Constant(node.func.attr), node.args[0])


def _is_alone(call: ast.Call) -> bool:
    """Whether a call has one argument."""
    return len(call.args) == 1 and not call.keywords


def _calls(node: ast.expr, helper: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == PREFIX + helper


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _call(helper: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_name(PREFIX + helper), list(arguments), [])
