"""What in a function may be replaced: calls of activations, activations written out, and products with either."""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn import GLU, Module, PReLU

from optiacts import curves
from optiacts.conversion.callees import Scope
from optiacts.conversion.known import Known
from optiacts.conversion.purity import ImpureError
from optiacts.conversion.recognition import (
    Recognised,
    recognise_expression,
    recognise_function,
    recognise_module,
    recognise_partial,
)
from optiacts.conversion.source import Position, position, replaced
from optiacts.conversion.spelled import FUNCTIONS, torch_curve
from optiacts.conversion.syntax import names, walk, words
from optiacts.norm_calls import norm_name

_CURVED = frozenset(("sigmoid", "tanh", "erf", "erfc", "exp", "expit", "softplus", "logsigmoid", "ndtr"))
_OPERAND = "_optiacts_operand"  # what an activation that is written out of no variable calls its input


@dataclass(frozen=True)
class Site:
    """An expression that evaluates an activation.

    ``base`` is the curve; ``known`` are the callables that it may call; ``written`` and ``variable`` belong to an
    activation that is written out in one variable, or with that name for ``operand``, an expression in it.
    ``returning`` are functions that return an activation's output.
    ``alone``: it gains something without a product, too. ``kept_once``: PyTorch keeps one tensor for it.
    """

    at: Position
    base: str
    known: tuple[Known, ...] = ()
    written: Recognised | None = None
    variable: str = ""
    operand: ast.expr | None = None
    returning: tuple[tuple[types.FunctionType, bool], ...] = ()  # and whether it is a method of the same module
    title: str = ""
    alone: bool = True
    kept_once: bool = False
    callees: tuple[Any, ...] = ()  # that evaluate a curve

    @property
    def what(self) -> str:
        """The name that reports give it."""
        return self.title or self.base


@dataclass(frozen=True)
class Product:
    """A product with the activation ``act`` as a factor. ``form`` says which helper forms it, of ``inputs``.

    ``clamps`` are those of its inputs: where they stand, and the helper that takes their place. The form "glu" is a
    call of the function of PyTorch that is called so.
    """

    at: Position
    act: Site
    form: str
    inputs: tuple[ast.expr, ...] = ()
    clamps: tuple[tuple[Position, str], ...] = ()

    @property
    def what(self) -> str:
        return "glu" if self.form == "glu" else f"{self.act.what} gate{' with clamps' if self.clamps else ''}"


@dataclass(frozen=True)
class Drop:
    """A call of a dropout: of what ``source`` evaluates, which waits for it, or of any tensor."""

    at: Position
    call: ast.Call
    source: Site | Product | None

    @property
    def what(self) -> str:
        return "dropout" if self.source is None else f"{self.source.what} + dropout"


@dataclass(frozen=True)
class Link:
    """A call of one of ``norms``, whose output goes to one of the activations ``acts`` and nowhere else.

    ``passes`` are calls in between that return their argument, perhaps permuted, and what takes their place.
    """

    at: Position
    norms: tuple[Any, ...]
    acts: tuple[Site, ...]
    passes: tuple[tuple[Position, str], ...] = ()

    @property
    def what(self) -> str:
        names = dict.fromkeys(norm_name(norm) or "" for norm in self.norms)
        return f"{' or '.join(names)} + {self.acts[0].what}"

    @property
    def modules(self) -> list[Module]:
        """The activations that are modules."""
        return [callee for act in self.acts for callee in act.callees if isinstance(callee, Module)]


def act_of(site: Site | Product | Drop | Link) -> Site | None:
    """The activation in it, if there is one."""
    if isinstance(site, Link):
        return site.acts[0]
    if isinstance(site, Drop):
        return None if site.source is None else act_of(site.source)
    return site.act if isinstance(site, Product) else site


@dataclass
class Sites:
    """All of a function."""

    acts: dict[Position, Site] = field(default_factory=dict)
    products: dict[Position, Product] = field(default_factory=dict)
    drops: dict[Position, Drop] = field(default_factory=dict)
    chains: dict[Position, Link] = field(default_factory=dict)


class Model(Protocol):
    """What a function's sites depend on besides its text."""

    def contains(self, module: Module) -> bool:
        """Whether a module is converted itself, so that its calls need no site."""

    def harmless(self, scope: Scope, call: ast.Call, number: int) -> bool:
        """Whether a call leaves its argument of that number as it is."""

    def returned(self, scope: Scope, call: ast.Call, callee: Any) -> tuple[Site, types.FunctionType, bool] | None:
        """The activation whose output a function returns, the function, and whether it is the module's own method."""


def find(scope: Scope, model: Model) -> Sites:
    """The sites of a function."""
    sites = Sites()
    for call in scope.calls:
        site = _called(scope, call, model) or _returning(scope, call, model)
        if site is not None:
            sites.acts[site.at] = site
    for site in _written_out(scope, sites.acts):
        sites.acts[site.at] = site
    return sites


def kept_once(name: str) -> bool:
    """Whether PyTorch keeps one tensor for a curve: where nobody else keeps its output, there is nothing to gain."""
    return curves.get(name).held_once


def returned_by(scope: Scope, sites: Sites) -> Site | None:
    """The activation whose output a function returns as it is."""
    body = scope.node.body if isinstance(scope.node, ast.Lambda) else None
    ends = [body] if body is not None else [n.value for n in walk(scope.node) if isinstance(n, ast.Return)]
    found = (sites.acts.get(position(end)) for end in ends if end is not None)
    return next((act for act in found if act is not None and not act.returning), None)


def _called(scope: Scope, call: ast.Call, model: Model) -> Site | None:
    """A call of an activation."""
    bases: dict[str, None] = {}
    alone, once, known = False, True, []
    callees: list[Any] = []
    for callee in scope.objects(call.func):
        curve, entry = _curve(callee, call)
        if curve is None or not curves.get(curve).worth_gating:
            continue
        bases[curve] = None
        callees.append(callee)
        alone |= not curves.get(curve).keeps_output and not (isinstance(callee, Module) and model.contains(callee))
        once &= kept_once(curve) and (entry is None or not entry.recognised.steps)
        if entry is not None and entry not in known:
            known.append(entry)
    if not bases:
        return None
    base, *others = bases
    title = "activation" if others else base  # of a table of them: which one, the call tells
    return Site(position(call), base, tuple(known), title=title, alone=alone, kept_once=once, callees=tuple(callees))


def _returning(scope: Scope, call: ast.Call, model: Model) -> Site | None:
    """A call of a function that returns an activation's output: part of a product, if at all."""
    found = [model.returned(scope, call, callee) for callee in scope.objects(call.func)]
    functions = list(filter(None, found))
    if not functions:
        return None
    returning = tuple((function, own) for _, function, own in functions)
    return Site(position(call), functions[0][0].base, returning=returning, alone=False)


def _curve(callee: Any, call: ast.Call) -> tuple[str | None, Known | None]:
    options: dict[Any, Any] = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    positional = len(call.args)
    alone = positional == 1 and not call.keywords and not isinstance(call.args[0], ast.Starred)
    if isinstance(callee, functools.partial) and alone and torch_curve(callee.func) is None:
        try:
            partial = recognise_partial(callee)
        except ImpureError:
            return None, None
        return partial.base, Known(functools.partial, partial)
    while isinstance(callee, functools.partial):
        options, positional = {**callee.keywords, **options}, positional + len(callee.args)
        callee = callee.func
    curve = torch_curve(callee, options)
    if curve is not None:
        return (None, None) if _unsuited(callee, call) else (curve, None)
    if not alone:
        return None, None
    try:
        if isinstance(callee, Module):
            recognised: Recognised | None = activation(callee)
            key: Any = getattr(type(callee), "optiacts_original", type(callee))
        elif isinstance(callee, types.FunctionType):
            recognised, key = recognise_function(callee), callee.__code__
        else:
            return None, None
    except ImpureError:
        return None, None
    return (None, None) if recognised is None else (recognised.base, Known(key, recognised))


def _unsuited(callee: Any, call: ast.Call) -> bool:
    """Whether a call names numbers with which a function of PyTorch is no curve, ``leaky_relu(x, -0.1)``."""
    known = next((known for known in FUNCTIONS if known.function is callee), None)
    if known is None or known.family is None:
        return False
    given = dict(zip(known.defaults, call.args[1:], strict=False)) | {k.arg: k.value for k in call.keywords}
    try:
        options = {str(name): ast.literal_eval(value) for name, value in given.items() if name in known.defaults}
    except (ValueError, TypeError):
        return False  # what is not written there is told when the call runs
    return known.curve(options) is None


def activation(module: Module) -> Recognised | None:
    """What an activation module computes; None for any other module."""
    if module._parameters or module._modules or module._buffers or "forward" in module.__dict__:
        return None
    try:
        return recognise_module(module)
    except ImpureError:
        return None


def twin_of(module: Module) -> str:
    """The module of PyTorch's that is no curve, but has a twin that saves: PReLU with its learnt weight, or GLU."""
    kind = getattr(type(module), "optiacts_original", type(module))
    forward = None if "forward" in module.__dict__ else getattr(kind, "forward", None)
    return "prelu" if forward is PReLU.forward else "glu" if forward is GLU.forward else ""


def curve_of(module: Module) -> str | None:
    """The curve of an activation module that holds its input, or did before conversion; None for any other."""
    if twin_of(module):
        return twin_of(module)
    found = activation(module)
    return found.base if found is not None and found.keeps_input else None


def _written_out(scope: Scope, calls: dict[Position, Site]) -> Iterator[Site]:
    """Activations that are written out as an expression of one local variable, or of one expression."""
    pending: list[ast.AST] = list(ast.iter_child_nodes(scope.node))
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue  # expressions in there have variables of their own
        written = (
            _read(scope, node) if isinstance(node, (ast.BinOp, ast.Call)) and position(node) not in calls else None
        )
        if written is None:
            pending += ast.iter_child_nodes(node)
        else:
            yield written
            pending += [] if written.operand is None else [written.operand]


def _read(scope: Scope, node: ast.expr) -> Site | None:
    """The activation that ``node`` writes out, if it is one."""
    squared = _squared_relu(scope, node)
    readings: list[tuple[ast.expr, ast.expr | None]] = [(node, None)]
    if squared is not None and not isinstance(squared, ast.Name):
        readings.append((replaced(node, position(squared), _OPERAND), squared))
    for expression, operand in readings:
        variable, numbers = _one_variable(scope, expression, squared is not None)
        if variable:
            try:
                recognised = recognise_expression(scope, expression, variable, numbers)
            except ImpureError:
                continue
            once = kept_once(recognised.base) and not recognised.steps
            at = position(node)
            return Site(at, recognised.base, (), recognised, variable, operand, kept_once=once)
    return None


def _squared_relu(scope: Scope, node: ast.expr) -> ast.expr | None:
    """What ``node`` squares the ReLU of, if it does: ``relu(x) ** 2``, ``relu(x).square()``, ``square(relu(x))``."""
    inner: ast.expr | None = None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        inner = node.left
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("square", "pow"):
        inner = node.args[0] if scope.one(node.func) is not None and node.args else node.func.value
    elif isinstance(node, ast.Call) and node.args and scope.one(node.func) in (torch.square, torch.pow):
        inner = node.args[0]
    if not isinstance(inner, ast.Call):
        return None
    if isinstance(inner.func, ast.Attribute) and inner.func.attr in ("relu", "relu_") and not inner.args:
        return inner.func.value
    if len(inner.args) == 1 and any(_curve(callee, inner)[0] == "relu" for callee in scope.objects(inner.func)):
        return inner.args[0]
    return None


def _one_variable(scope: Scope, node: ast.expr, squared: bool) -> tuple[str, dict[str, float]]:
    """The local variable that ``node`` computes from, if it is the only one and looks curved; and numbers in it.

    More than once, for what computes from it once is a call; or its ReLU ``squared``. The numbers are parameters of
    the function, with their default values.
    """
    if not squared and _CURVED.isdisjoint(words(node)):
        return "", {}
    bound = scope.bound | {_OPERAND}
    used = [name.id for name in names(node) if name.id in bound]
    numbers = {name: value for name, value in _number_parameters(scope).items() if name in used}
    variables = set(used) - {scope.context.self_name} - numbers.keys()
    if len(variables) != 1:
        return "", {}
    (variable,) = variables
    return (variable if used.count(variable) > 1 or squared else ""), numbers


def _number_parameters(scope: Scope) -> dict[str, float]:
    """The parameters of a function whose defaults are numbers, and which it binds to nothing else."""
    parameters = inspect.signature(scope.function, follow_wrapped=False).parameters.values()
    numbers = {p.name: p.default for p in parameters if type(p.default) in (int, float)}
    if not numbers:
        return {}
    stored = {n.id for n in walk(scope.node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    return {name: value for name, value in numbers.items() if name not in stored}
