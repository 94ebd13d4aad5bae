"""Norms in a function whose output goes to an activation and nowhere else: the two can be one step.

A norm is a call of a norm module, of such a module's own forward (``super().forward(x)``), or of PyTorch's function.
Either that call is the activation's argument, or it is bound to a variable whose next use, on every path through the
function, is that argument. Modules in between that return what they are given (``nn.Identity``) are seen through:
``self.act(self.drop(self.norm(x)))``. So is a ``permute`` of the norm's output, which is made of the activation's
instead. What else stands between the two must call nothing: the norm runs when the activation does.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from typing import Any

from optiacts.conversion.callees import Scope
from optiacts.conversion.known import is_identity
from optiacts.conversion.sites import Link, Sites
from optiacts.conversion.source import Function, Position, position
from optiacts.conversion.syntax import names, walk
from optiacts.norm_calls import norm_name


def find_chains(scope: Scope, sites: Sites) -> None:
    """The chains of a function, by the positions of their norms' calls."""
    products = {product.act.at for product in sites.products.values()}
    acts: Takers = {}
    for call in scope.calls:
        act = sites.acts.get(position(call))
        if act is None or act.at in products or act.written is not None or not act.callees or not call.args:
            continue
        if not isinstance(call.args[0], ast.Starred):
            acts[id(call.args[0])] = act.at
    norms = {id(call): found for call in scope.calls if acts and (found := norms_of(scope, call))}
    if not norms:
        return
    passing = _passing(scope)
    _see_through(acts, passing)
    for call in scope.calls:
        if id(call) not in norms:
            continue
        outer, passes = _outermost(call, passing)
        walk = _Walk(acts, passing)
        if id(outer) in acts:
            walk.take(outer)
        elif not _uses(scope, outer, walk):
            continue
        links = tuple(sites.acts[at] for at in sorted(walk.found))
        every = tuple(sorted({(position(node), _how(node)) for node in (*passes, *walk.passes)}))
        sites.chains[position(call)] = Link(position(call), norms[id(call)], links, every)


def norms_of(scope: Scope, call: ast.Call) -> tuple[Any, ...]:
    """The norms that a call may run."""
    if (
        not call.args
        or any(isinstance(a, ast.Starred) for a in call.args)
        or any(k.arg is None for k in call.keywords)
    ):
        return ()
    if len(call.args) == 1 and not call.keywords:
        return tuple(callee for callee in scope.objects(call.func) if norm_name(callee) is not None)
    found = (callee for callee in scope.objects(call.func) if isinstance(callee, types.FunctionType))
    return tuple(callee for callee in found if norm_name(callee) is not None)


Takers = dict[int, Position]  # activations by their argument, by the identity of its node
Passing = dict[int, ast.Call]  # calls that return their argument, perhaps permuted, by that argument


def _passing(scope: Scope) -> Passing:
    """The calls of modules that return what they are given, and of ``permute``."""
    found: Passing = {}
    for call in scope.calls:
        moved = _permuted(call)
        if moved is not None:
            found[id(moved)] = call
        elif len(call.args) == 1 and not call.keywords and not isinstance(call.args[0], ast.Starred):
            callees = scope.objects(call.func)
            if callees and all(map(is_identity, callees)):
                found[id(call.args[0])] = call
    return found


def _permuted(call: ast.Call) -> ast.expr | None:
    """What a call permutes, by numbers that stand there; None if it is no such call."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "permute" or call.keywords:
        return None
    return call.func.value if all(isinstance(a, ast.Constant) for a in call.args) else None


def _how(call: ast.Call) -> str:
    """The name of what takes the place of a call in between."""
    return "through" if _permuted(call) is None else "permuted"


def _see_through(acts: Takers, passing: Passing) -> None:
    """Adds what reaches an activation through calls that return it."""
    for argument, call in passing.items():
        outer, _ = _outermost(call, passing)
        if id(outer) in acts:
            acts[argument] = acts[id(outer)]


def _outermost(node: ast.expr, passing: Passing) -> tuple[ast.expr, list[ast.Call]]:
    """The expression with the value of ``node`` that is no argument of a call which returns it, and such calls."""
    calls: list[ast.Call] = []
    while id(node) in passing:
        node = passing[id(node)]
        calls.append(node)
    return node, calls


class _RefusedError(Exception):
    """The variable's value may be needed elsewhere, or later than something else runs."""


def _uses(scope: Scope, norm: ast.expr, walk: _Walk) -> bool:
    """Whether activations alone take the variable which the norm's output is bound to; ``walk`` finds them."""
    for blocks in _paths_to(scope.node, norm):
        block, number = blocks[-1]
        statement = block[number]
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            return False
        target, value = statement.targets[0], statement.value
        values = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
        if not isinstance(target, ast.Name) or norm not in values or _elsewhere(scope.node, target.id):
            return False
        try:
            return walk.after(blocks, target.id)
        except _RefusedError:
            return False
    return False


def _elsewhere(function: Function, name: str) -> bool:
    """Whether inner functions read a variable, or others may bind it."""
    for node in walk(function):
        if isinstance(node, (ast.Global, ast.Nonlocal)) and name in node.names:
            return True
        if isinstance(node, ast.Name) and node.id in ("locals", "vars", "eval", "exec"):
            return True
        if isinstance(node, ast.GeneratorExp):  # runs later, but for what it goes over
            parts: list[ast.AST] = [node.elt, *node.generators[0].ifs, *node.generators[1:]]
            if any(_reads(part, name) for part in parts):
                return True
        inner = isinstance(node, (ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if inner and node is not function and _names(node, name):
            return True
    return False


Blocks = list[tuple[list[ast.stmt], int]]  # from the outermost: a block, and the number of the statement in it


def _paths_to(function: Function, node: ast.AST) -> Iterator[Blocks]:
    """Where a node stands, at most once."""
    if not isinstance(function, ast.Lambda):
        blocks: Blocks = []
        block: list[ast.stmt] | None = function.body
        while block is not None:
            number = next((n for n, s in enumerate(block) if any(node is inner for inner in walk(s))), None)
            if number is None:
                return
            blocks.append((block, number))
            statement = block[number]
            if isinstance(statement, ast.If):
                inner = [statement.body, statement.orelse]
            else:
                inner = [statement.body] if isinstance(statement, (ast.With, ast.For, ast.While)) else []
            block = next((b for b in inner if any(node is part for s in b for part in walk(s))), None)
        yield blocks


class _Walk:
    """Follows a variable from where it is bound to where it is bound again, on all paths.

    ``found`` are the activations that take it, ``passes`` the calls in between that return it.
    """

    def __init__(self, acts: Takers, passing: Passing) -> None:
        self._acts, self._passing = acts, passing
        self._name = ""
        self.found: set[Position] = set()
        self.passes: list[ast.Call] = []

    def take(self, node: ast.expr) -> None:
        """Notes the activation that takes ``node``."""
        self.found.add(self._acts[id(node)])
        self.passes += _outermost(node, self._passing)[1]

    def after(self, blocks: Blocks, name: str) -> bool:
        """Whether activations alone take ``name`` after the last statement of ``blocks``."""
        self._name = name
        used = False
        for depth in range(len(blocks) - 1, -1, -1):
            block, number = blocks[depth]
            used, goes_on = self._block(block[number + 1 :], used)
            if not goes_on:
                return bool(self.found)
            if depth and not isinstance(blocks[depth - 1][0][blocks[depth - 1][1]], ast.If):
                raise _RefusedError  # out of a loop or a context
        return bool(self.found)

    def _block(self, statements: list[ast.stmt], used: bool) -> tuple[bool, bool]:
        """Whether the value has been used after the statements, and whether the path leads beyond them."""
        for statement in statements:
            used, goes_on = self._statement(statement, used)
            if not goes_on:
                return used, False
        return used, True

    def _statement(self, statement: ast.stmt, used: bool) -> tuple[bool, bool]:
        if isinstance(statement, ast.If):
            used = self._expression(statement.test, used)
            first, second = self._block(statement.body, used), self._block(statement.orelse, used)
            return first[0] or second[0], first[1] or second[1]
        if isinstance(statement, (ast.Return, ast.Raise)):
            self._expression(statement, used)
            return used, False
        simple = isinstance(statement, (ast.Assign, ast.AnnAssign, ast.Expr, ast.AugAssign, ast.Assert, ast.Pass))
        if not simple:
            leaves = isinstance(statement, (ast.Break, ast.Continue))
            if not used or leaves or _names(statement, self._name):
                raise _RefusedError
            return used, True
        if isinstance(statement, ast.AugAssign) and _names(statement.target, self._name):
            raise _RefusedError
        if not used and self._passed_on(statement):
            return used, True
        used = self._expression(statement, used)
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        return used, not any(isinstance(t, ast.Name) and t.id == self._name for t in targets)

    def _passed_on(self, statement: ast.stmt) -> bool:
        """Whether a statement binds the variable to what a call returns that was given it: ``x = self.drop(x)``."""
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            return False
        (target,), reads = statement.targets, _reads(statement.value, self._name)
        if len(reads) != 1 or not (isinstance(target, ast.Name) and target.id == self._name):
            return False
        outer, passes = _outermost(reads[0], self._passing)
        if outer is not statement.value or not passes:
            return False
        self.passes += passes
        return True

    def _expression(self, node: ast.AST, used: bool) -> bool:
        reads = _reads(node, self._name)
        if not reads:
            if not used and not _quiet(node):
                raise _RefusedError
            return used
        if used or len(reads) > 1 or id(reads[0]) not in self._acts:
            raise _RefusedError
        others = [n for n in walk(node) if isinstance(n, ast.Call) and not any(reads[0] is m for m in walk(n))]
        if others or isinstance(node, ast.AugAssign):
            raise _RefusedError
        self.take(reads[0])
        return True


def _reads(node: ast.AST, name: str) -> list[ast.Name]:
    return [n for n in names(node) if n.id == name and isinstance(n.ctx, ast.Load)]


def _names(node: ast.AST, name: str) -> bool:
    return any(n.id == name for n in names(node))


def _quiet(node: ast.AST) -> bool:
    """Whether nothing in it runs code of others or changes a tensor."""
    loud = (ast.Call, ast.AugAssign, ast.Await, ast.Yield, ast.YieldFrom, ast.Delete)
    return not any(
        isinstance(n, loud) or (isinstance(n, (ast.Attribute, ast.Subscript)) and not isinstance(n.ctx, ast.Load))
        for n in walk(node)
    )
