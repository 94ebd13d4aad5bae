"""Clamps of what goes into a gated product: PyTorch keeps their inputs, ours bits.

A converted clamp is PyTorch's to the bit, gradient and all. So where it stands is a matter of gain alone: in front of
a product, as in GPT-OSS, nobody else keeps what comes from the projection.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

import torch

from optiacts.conversion.callees import Scope
from optiacts.conversion.source import Position, position
from optiacts.conversion.syntax import walk

_BOUNDS = {"clamp": ("min", "max"), "clip": ("min", "max"), "clamp_min": ("min",), "clamp_max": ("max",)}
_FURTHEST = 4  # assignments between a clamp and the product


def clamps_in(scope: Scope, factors: Iterable[ast.expr]) -> tuple[tuple[Position, str], ...]:
    """The clamps that ``factors`` are computed by, in this function, each with the helper that takes its place."""
    found: dict[Position, str] = {}
    nodes, names = list(factors), set[str]()
    for _ in range(_FURTHEST):
        inner = [node for expression in nodes for node in walk(expression)]
        found |= {position(node): helper for node in inner if (helper := _helper(scope, node))}  # type: ignore[arg-type]
        fresh = {node.id for node in inner if isinstance(node, ast.Name)} - names
        names |= fresh
        nodes = [value for name, value in scope.source.assigned if name in fresh]
    return tuple(sorted(found.items()))


def _helper(scope: Scope, node: ast.AST) -> str:
    """How a call clamps: as a function of torch, as a method of a tensor, or not at all."""
    if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
        return ""
    if any(keyword.arg is None for keyword in node.keywords):
        return ""
    if _function_name(scope.one(node.func)):
        return "clamp" if node.args else ""
    if isinstance(node.func, ast.Attribute) and node.func.attr in _BOUNDS and scope.one(node.func) is None:
        return "clamp_method"
    return ""


def _function_name(callee: Any) -> str:
    return next((name for name in _BOUNDS if callee is getattr(torch, name)), "")


def bounds(callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The bounds of a call of torch's function, or of a method called so; None if it is another call."""
    name = callee if isinstance(callee, str) else _function_name(callee)
    names = _BOUNDS.get(name, ())
    if not names or len(args) > len(names) or any(key not in names[len(args) :] for key in kwargs):
        return None
    return dict(zip(names, args, strict=False)) | kwargs
