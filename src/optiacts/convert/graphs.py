"""What is rewritten in a traced forward: activation functions, and products with an activation's output."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import Module, functional

from optiacts import functional as ours
from optiacts import functional_gated
from optiacts.convert.known import gate_of, saves_input

# function -> ours, of the same arguments
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    functional.gelu: ours.gelu,
    functional.silu: ours.silu,
    functional.mish: ours.mish,
    torch.ops.aten.gelu.default: ours.gelu,
    torch.ops.aten.silu.default: ours.silu,
    torch.ops.aten.mish.default: ours.mish,
}
_RELUS = (functional.relu, torch.relu, torch.ops.aten.relu.default, "relu")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, torch.ops.aten.mul.Tensor)
_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow)
# What follows and does not keep its input. Then an activation of which PyTorch keeps one tensor gains nothing,
# while written-out ones, of which it keeps several, do; and so do all gates but ReLU.
_KEPT_ONCE = ("gelu", "gelu_tanh", "silu", "mish", "relu")
_SUMS = (operator.add, operator.sub, torch.add, torch.sub, torch.cat)
_CASTS = ("to", "float", "half", "bfloat16", "type_as", "add", "sub")


@dataclass(frozen=True)
class Rewrite:
    """One activation that was met in a graph: replaced under the condition ``guard``, or left for ``reason``."""

    what: str
    reason: str = ""
    guard: str = ""


def gated_products(graph: fx.Graph, module: Module, chosen: Callable[[str], bool], whole: bool) -> list[Rewrite]:
    """Replaces ``act(gate) * up`` by the gated operation; act is a ``chosen`` module or, if ``whole``, a function."""
    done = []
    for product in list(graph.nodes):
        if not _is_product(product):
            continue
        for act, up in _both_ways(product):
            curve = _curve_at(act, module, chosen, whole)
            if curve is None or act is up or up.op == "get_attr" or not _may_move(act, product, module):
                continue
            reason = why_not(product, module, curve if curve == "relu" else "")
            if reason:
                done.append(Rewrite(f"{curve} gate", reason))
                break
            with graph.inserting_before(product):
                gated = graph.call_function(functional_gated.gated, (act.args[0], up, curve))
            product.replace_all_uses_with(gated)
            graph.erase_node(product)
            graph.erase_node(act)
            guard = f"gate_of({_expression(str(act.target))}) == {curve!r}" if act.op == "call_module" else ""
            done.append(Rewrite(f"{curve} gate", guard=guard))
            break
    return done


def functions(graph: fx.Graph, module: Module) -> list[Rewrite]:
    """Replaces activations that are called as functions, or written out as operators, by ours."""
    done = []
    for node in list(graph.nodes):
        written_out = _written_out(node)
        curve = _curve_of_call(node) if written_out is None else written_out[0]
        if curve is None or not saves_input(curve):
            continue
        reason = why_not(node, module, curve)
        if not reason and written_out is not None:
            with graph.inserting_before(node):
                replacement = graph.call_function(ours.apply, written_out)
            node.replace_all_uses_with(replacement)
            _erase(graph, node, written_out[1])
        elif not reason:
            node.target = _FUNCTIONS[node.target]
        done.append(Rewrite(curve, reason))
    return done


def _curve_at(node: fx.Node, module: Module, chosen: Callable[[str], bool], whole: bool) -> str | None:
    """The curve that ``node`` evaluates, if it is an activation of one tensor that may be converted."""
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        return gate_of(module.get_submodule(str(node.target))) if chosen(str(node.target)) else None
    return _curve_of_call(node) if whole else None


def _curve_of_call(node: fx.Node) -> str | None:
    if len(node.args) != 1 or node.op not in ("call_function", "call_method"):
        return None
    if node.target in _RELUS and not node.kwargs.get("inplace"):
        return "relu"
    if node.target not in _FUNCTIONS:
        return None
    name = _FUNCTIONS[node.target].__name__
    if name == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(node.kwargs.get("approximate", "none")))
    return name


def _expression(path: str) -> str:
    names = path.split(".")
    return f"self.{path}" if all(name.isidentifier() for name in names) else f"self.get_submodule({path!r})"


def why_not(node: fx.Node, module: Module, curve: str) -> str:
    """Why the activation, or gated product, at ``node`` is better left alone; empty if nothing speaks against it."""
    followers = list(node.users)
    for follower in followers:
        if changes_in_place(follower, node, module):
            return f"its output is changed in place by {_described(follower)}"
    if curve in _KEPT_ONCE and followers and all(_keeps_nothing(follower, module) for follower in followers):
        return f"what follows, {_described(followers[0])}, does not keep its output"
    return ""


def why_not_before(follower: Module, curve: str) -> str:
    """The same for an activation that the module ``follower`` follows."""
    if getattr(follower, "inplace", False):
        return f"its output is changed in place by the {type(follower).__name__} after it"
    if curve in _KEPT_ONCE and _drops(follower):
        return f"what follows, {type(follower).__name__}, does not keep its output"
    return ""


def changes_in_place(node: fx.Node, tensor: fx.Node, module: Module) -> bool:
    """Whether ``node`` overwrites its input ``tensor``."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "output" or not node.args or node.args[0] is not tensor:
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    named_so = name.endswith("_") and not name.endswith("__")
    return named_so or node.target in _IN_PLACE_OPERATORS or bool(node.kwargs.get("inplace"))


def _keeps_nothing(node: fx.Node, module: Module) -> bool:
    if node.op == "call_module":
        return _drops(module.get_submodule(str(node.target)))
    if node.op == "call_function" and node.target is functional.dropout:
        return bool(node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5))
    return node.target in (_SUMS if node.op == "call_function" else _CASTS if node.op == "call_method" else ())


def _drops(module: Module) -> bool:
    return isinstance(module, torch.nn.Dropout) and module.p > 0


def _described(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"the module {node.target}"
    return f"{node.target if isinstance(node.target, str) else getattr(node.target, '__name__', node.target)}()"


def _both_ways(product: fx.Node) -> tuple[tuple[fx.Node, fx.Node], ...]:
    """The two factors of a product, in either order."""
    first, second = product.args
    assert isinstance(first, fx.Node) and isinstance(second, fx.Node)
    return (first, second), (second, first)


def _is_product(node: fx.Node) -> bool:
    named = node.op == "call_method" and node.target in ("mul", "mul_", "multiply")
    return (
        (named or (node.op == "call_function" and node.target in _PRODUCTS))
        and len(node.args) == 2
        and not node.kwargs
        and all(isinstance(factor, fx.Node) for factor in node.args)
    )


def _input(act: fx.Node) -> fx.Node:
    node = act.args[0]
    assert isinstance(node, fx.Node)
    return node


def _may_move(act: fx.Node, product: fx.Node, module: Module) -> bool:
    """Whether the activation can be evaluated at the product instead: nobody else sees it, nothing is overwritten."""
    gate = act.args[0]
    if list(act.users) != [product] or not isinstance(gate, fx.Node):
        return False
    up = next(factor for factor in product.args if factor is not act)
    overwriters = [changes_in_place(user, gate, module) for user in gate.users]  # among them act itself
    return not any(overwriters) and not changes_in_place(product, up, module)  # type: ignore[arg-type]


def _written_out(node: fx.Node) -> tuple[str, fx.Node] | None:
    """Curve and input, if ``node`` is x * sigmoid(x) or x * sigmoid(1.702 x) as operators."""
    if not _is_product(node) or node.target == "mul_" or node.target is operator.imul:
        return None
    for x, gate in _both_ways(node):
        if not _is_sigmoid(gate) or list(gate.users) != [node]:
            continue
        inner = gate.args[0]
        if inner is x:
            return "swish", x
        if isinstance(inner, fx.Node) and _scaled(inner, x) and list(inner.users) == [gate]:
            return "quick_gelu", x
    return None


def _erase(graph: fx.Graph, product: fx.Node, x: fx.Node) -> None:
    """Erases a written-out activation of ``x``: the product, its sigmoid, and the scaled argument of that."""
    nodes = [product]
    while nodes:
        node = nodes.pop()
        nodes += [source for source in node.all_input_nodes if source is not x]
        graph.erase_node(node)


def _is_sigmoid(node: Any) -> bool:
    return (
        (node.op == "call_function" and node.target in (torch.sigmoid, functional.sigmoid))
        or (node.op == "call_method" and node.target == "sigmoid")
    ) and len(node.args) == 1


def _scaled(node: fx.Node, x: fx.Node) -> bool:
    is_product = node.op == "call_function" and node.target in (operator.mul, torch.mul)
    return is_product and len(node.args) == 2 and x in node.args and 1.702 in node.args
