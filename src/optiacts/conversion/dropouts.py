"""Dropouts in a function: of any tensor, or of an activation's output or a gated product that waits for it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import NamedTuple

from optiacts.conversion.callees import Scope
from optiacts.conversion.known import is_dropout
from optiacts.conversion.products import Waiting, gate_of, stays, waiting_in
from optiacts.conversion.sites import Drop, Model, Product, Site, Sites
from optiacts.conversion.source import Position, position
from optiacts.conversion.syntax import walk


def find_dropouts(scope: Scope, sites: Sites, model: Model, gated: bool) -> None:
    """The dropouts of a function. ``gated``: products may wait for theirs."""
    in_products = {product.act.at for product in sites.products.values()}
    sources: dict[Position, Site | Product] = {at: a for at, a in sites.acts.items() if at not in in_products}
    if gated:
        sources |= {at: product for at, product in sites.products.items() if product.form not in ("into", "glu")}
    waiting = waiting_in(scope, sources)
    used: set[Position] = set()
    for call in scope.calls:
        callees = scope.objects(call.func)
        dropped = dropped_by(call)
        if dropped is None or not callees or not all(map(is_dropout, callees)):
            continue
        rest: list[ast.AST] = [a for a in (*call.args, *(k.value for k in call.keywords)) if a is not dropped]
        if any(isinstance(node, ast.Call) for argument in rest for node in walk(argument)):
            continue
        waits = _waits(dropped, sources, waiting)
        if (
            waits is not None
            and waits.source.at not in used
            and stays(scope, waits.inputs, waits.between + rest, model)
        ):
            used.add(waits.source.at)
            sites.drops[position(call)] = Drop(position(call), call, waits.source)
        elif any(not model.contains(callee) for callee in callees):  # a module of the model is converted itself
            sites.drops[position(call)] = Drop(position(call), call, None)


def dropped_by(call: ast.Call) -> ast.expr | None:
    """What a call of a dropout drops; None if that cannot be told."""
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        return None
    given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "input")]
    return given[0] if len(given) == 1 else None


class _Waiting(NamedTuple):
    """What a dropout drops, what that is evaluated of, and what runs between it and the dropout."""

    source: Site | Product
    inputs: list[ast.expr]
    between: list[ast.AST]


def _waits(node: ast.expr, sources: Mapping[Position, Site | Product], waiting: Waiting) -> _Waiting | None:
    """What evaluates ``node``, if it may wait for its dropout."""
    between: list[ast.AST] = []
    source = sources.get(position(node))
    if isinstance(node, ast.Name):
        source, node, between = waiting.get((node.id, position(node)), (None, node, []))
    if source is None:
        return None
    inputs = list(source.inputs) if isinstance(source, Product) else gate_of(source, node)
    return _Waiting(source, inputs, between)
