"""Products with an activation's output, and whether the activation may wait for its product.

It may if nobody else sees its output, and if nothing in between could change its input.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional

from optiacts.conversion.callees import Scope
from optiacts.conversion.clamps import clamps_in
from optiacts.conversion.sites import Model, Product, Site, Sites
from optiacts.conversion.source import Function, Position, position
from optiacts.conversion.syntax import names, walk

_PRODUCTS = (torch.mul, torch.multiply, torch.ops.aten.mul, torch.ops.aten.mul.Tensor)


def find_products(scope: Scope, sites: Sites, model: Model) -> None:
    used: set[Position] = set()

    def add(at: Position, act: Site, form: str, gate: list[ast.expr], up: ast.expr, between: list[ast.AST]) -> bool:
        if act.at in used or not stays(scope, gate, between, model):
            return False
        used.add(act.at)
        sites.products[at] = Product(at, act, form, (*gate, up), clamps_in(scope, (*gate, up)))
        return True

    waiting = waiting_in(scope, sites.acts)
    written = [act.at for act in sites.acts.values() if act.written is not None]
    for fused in scope.calls:
        if fused.args and any(callee is functional.glu for callee in scope.objects(fused.func)):
            at = position(fused)
            sites.products[at] = Product(at, Site(at, "sigmoid", alone=False), "glu")
    if not sites.acts:
        return
    for node in walk(scope.node):
        if isinstance(node, ast.expr) and any(_within(position(node), at) for at in written):
            continue  # x * sigmoid(x) is an activation, and no product with one
        for factor, up, form in _factors(scope, node):
            if _number(scope, up):
                continue
            at = position(node)  # type: ignore[arg-type]
            act = sites.acts.get(position(factor))
            if act is not None and form != "into":
                later: list[ast.AST] = [up] if form in ("product", "product_by", "product_method") else []
                if add(at, act, form, gate_of(act, factor), up, later):
                    break
            elif isinstance(factor, ast.Name) and (factor.id, position(factor)) in waiting:
                act, call, between = waiting[factor.id, position(factor)]
                if add(at, act, form, gate_of(act, call), up, [*between, up]):
                    break


def _within(inner: Position, outer: Position) -> bool:
    return outer[:2] <= inner[:2] and inner[2:] <= outer[2:]


def _number(scope: Scope, node: ast.expr) -> bool:
    value = node.value if isinstance(node, ast.Constant) else scope.one(node)
    return isinstance(value, (bool, int, float))


def gate_of(act: Site, node: ast.expr) -> list[ast.expr]:
    """What the activation is evaluated of."""
    if act.written is not None:
        return [ast.Name(act.variable, ast.Load()) if act.operand is None else act.operand]
    return [*node.args, *(k.value for k in node.keywords)] if isinstance(node, ast.Call) else []


def _factors(scope: Scope, node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr, str]]:
    """If ``node`` is a product: each of its factors, with the other one and the way to form it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield node.left, node.right, "product"
        yield node.right, node.left, "product_right"
    elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult) and isinstance(node.target, ast.Name):
        yield node.target, node.value, "into"
    elif isinstance(node, ast.Call) and not any(isinstance(a, ast.Starred) for a in node.args):
        function = scope.one(node.func)
        factors = factors_of(node)
        if factors and any(function is product for product in _PRODUCTS):
            yield factors[0], factors[1], "product_by"
            yield factors[1], factors[0], "product_by_right"
        elif len(node.args) == 1 and not node.keywords and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("mul", "multiply", "mul_"):
                yield node.func.value, node.args[0], "product_method"
            if node.func.attr in ("mul", "multiply"):
                yield node.args[0], node.func.value, "product_method_right"


def factors_of(call: ast.Call) -> list[ast.expr]:
    """The two arguments of ``torch.mul``, in order; none if they are given otherwise."""
    keys = [k.arg for k in call.keywords]
    given = [*call.args, *(k.value for k in call.keywords)]
    return given if len(given) == 2 and keys == ["input", "other"][len(call.args) :] else []


Waiting = dict[tuple[str, Position], tuple[Any, ast.expr, list[ast.AST]]]


def waiting_in(scope: Scope, sources: Mapping[Position, Any]) -> Waiting:
    """Variables that hold the value of one of the expressions ``sources`` for one use and nothing else.

    The variable is bound and used in one block of statements, without a branch in between, and is not read anywhere
    else before it is bound again. What the key tells is the use: the name, and where it stands.
    """
    found: Waiting = {}
    if not sources:
        return found
    if any(n.id in ("locals", "vars", "eval", "exec") for n in names(scope.node)):
        return found
    declared = {
        name for n in walk(scope.node) if isinstance(n, (ast.Global, ast.Nonlocal)) for name in n.names
    } | _captured(scope.node)
    for block in _blocks(scope.node):
        for number, statement in enumerate(block):
            if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
                continue
            target = statement.targets[0]
            act = sources.get(position(statement.value))
            if act is None or not isinstance(target, ast.Name) or target.id in declared:
                continue
            use = _only_use(scope.node, block, number, target.id)
            if use is not None:
                where, at = use
                found[target.id, at] = act, statement.value, list(block[number + 1 : where])
    return found


def _only_use(function: Function, block: list[ast.stmt], number: int, name: str) -> tuple[int, Position] | None:
    """Where in ``block`` the value bound in statement ``number`` is used, if it is used there alone."""
    for where in range(number + 1, len(block)):
        uses = [n for n in names(block[where]) if n.id == name]
        if not uses:
            if isinstance(block[where], (ast.Try, ast.With, ast.AsyncWith)):
                return None
            continue
        statement = block[where]
        simple = isinstance(statement, (ast.Assign, ast.AugAssign, ast.Return, ast.Expr, ast.AnnAssign))
        loads = [n for n in uses if isinstance(n.ctx, ast.Load)]
        rebinds = isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in statement.targets
        )
        target = statement.target if isinstance(statement, ast.AugAssign) else None
        if isinstance(target, ast.Name) and target.id == name and not loads:
            return (where, position(target)) if not _in_try(function, name) else None
        if not simple or len(loads) != 1:
            return None
        if not rebinds:
            before = _harmless_before(function, block, number, name)
            everywhere = [n for n in names(function) if n.id == name]
            others = [n for n in everywhere if isinstance(n.ctx, ast.Load) and position(n) not in before]
            if len(others) != 1 or _augmented(function, name):
                return None
        elif _in_try(function, name):
            return None
        return where, position(loads[0])
    return None


def _harmless_before(function: Function, block: list[ast.stmt], number: int, name: str) -> set[Position]:
    """Reads of a variable that come before it is bound in statement ``number``, and cannot come after it again.

    Outside of loops these are all before; in a loop those since the variable was bound in the same block.
    """
    looping = any(
        isinstance(node, (ast.For, ast.AsyncFor, ast.While)) and block[number] in walk(node)
        for node in walk(function)
    )
    bound = [
        k
        for k in range(number)
        if isinstance(block[k], (ast.Assign, ast.AnnAssign))
        for target in getattr(block[k], "targets", [getattr(block[k], "target", None)])
        if name in {n.id for n in names(target)}
    ]
    if looping:
        places: list[ast.AST] = list(block[bound[-1] + 1 : number + 1]) if bound else []
        reads = [n for place in places for n in names(place)]
    else:
        end = position(block[number])[2:]
        reads = [n for n in names(function) if position(n)[2:] <= end]
    return {position(n) for n in reads if n.id == name and isinstance(n.ctx, ast.Load)}


def _augmented(function: Function, name: str) -> bool:
    return any(
        isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name) and n.target.id == name
        for n in walk(function)
    )


def _in_try(function: Function, name: str) -> bool:
    """Whether a handler could meet the variable before it is bound again."""
    return any(
        n.id == name for statement in walk(function) if isinstance(statement, ast.Try) for n in names(statement)
    )


@functools.lru_cache(maxsize=1 << 10)
def _captured(function: Function) -> frozenset[str]:
    """Names that functions inside the function read."""
    inner = (
        ast.Lambda,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ListComp,
        ast.SetComp,
        ast.DictComp,
        ast.GeneratorExp,
    )
    return frozenset(
        name.id for node in walk(function) if isinstance(node, inner) and node is not function for name in names(node)
    )


@functools.lru_cache(maxsize=1 << 10)
def _blocks(function: Function) -> tuple[list[ast.stmt], ...]:
    every = (getattr(node, name, None) for node in walk(function) for name in ("body", "orelse", "finalbody"))
    return tuple(block for block in every if isinstance(block, list) and block and isinstance(block[0], ast.stmt))


def stays(scope: Scope, gate: list[ast.expr], between: list[ast.AST], model: Model) -> bool:
    """Whether nothing in ``between`` may change what the activation is evaluated of.

    What a call has just returned is nobody else's; a variable, and what is a view of it, could be changed.
    """
    direct = {_variable(expression) for expression in gate} - {""}
    shared = {other for name in direct for other in _aliases(scope, name)}
    if not shared:
        return True
    if any(_escapes(scope, name) for name in shared):
        return False
    for node in (n for part in between for n in walk(part)):
        if isinstance(node, ast.AugAssign) and _variable(node.target) in shared:
            return False
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and _variable(node) in shared:
            return False
        if isinstance(node, ast.Call):
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if method.endswith("_") and isinstance(node.func, ast.Attribute) and _variable(node.func.value) in shared:
                return False
            for number, argument in enumerate([*node.args, *(k.value for k in node.keywords)]):
                if _variable(argument) in shared and not model.harmless(scope, node, number):
                    return False
    return True


def _escapes(scope: Scope, name: str) -> bool:
    """Whether a variable's tensor is put where other functions find it: they might change it unseen."""
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
        and name in {n.id for n in names(node.value)}
        and not isinstance(node.value, ast.Call)
        for node in walk(scope.node)
    )


_VIEWING = ("chunk", "split", "view", "reshape", "unbind", "transpose", "flatten", "unflatten", "narrow", "squeeze")


def _variable(node: ast.expr) -> str:
    """The variable that ``node`` is, or is a view of; empty if it is something new."""
    while True:
        if isinstance(node, (ast.Subscript, ast.Starred)):
            node = node.value
        elif isinstance(node, ast.Attribute):
            return ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWING:
            views_of_first = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch" and node.args
            node = node.args[0] if views_of_first else node.func.value
        else:
            return node.id if isinstance(node, ast.Name) else ""


def _aliases(scope: Scope, name: str) -> set[str]:
    """Variables that share memory with ``name`` through plain assignments and views."""
    group = {name}
    pairs = scope.source.assigned
    for _ in range(4):
        for target, value in pairs:
            root = _variable(value)
            if root and (target in group or root in group):
                group |= {target, root}
    return group
