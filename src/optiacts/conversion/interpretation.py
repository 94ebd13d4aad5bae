"""One function, interpreted over values: what it changes in place, what it returns, and who takes what."""

from __future__ import annotations

import ast
import functools
import inspect
import types
from typing import TYPE_CHECKING, Any

from torch.nn import Module, functional

from optiacts.conversion.callees import Scope
from optiacts.conversion.followers import follower_of
from optiacts.conversion.interest import foreign, wrapped_in
from optiacts.conversion.known import is_dropout
from optiacts.conversion.source import Position, position
from optiacts.conversion.syntax import text
from optiacts.conversion.values import (
    NOTHING,
    Dropped,
    Effect,
    Follower,
    Inside,
    Numbered,
    Origin,
    Param,
    Value,
    behind_dropout,
    enclosed,
    opened,
    substituted,
)

if TYPE_CHECKING:
    from optiacts.conversion.flow import Flow

_VIEWS = frozenset(
    """view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose t permute movedim swapaxes expand
    expand_as narrow select chunk split unbind tensor_split detach contiguous as_strided diagonal unfold swapdims
    moveaxis ravel numpy from_numpy hsplit vsplit dsplit data real T mT H mH requires_grad_ atleast_1d atleast_2d
    atleast_3d broadcast_to broadcast_tensors positive adjoint alias view_as_real view_as_complex""".split()
)
# operations of torch that keep nothing of their input for backward, but its size
_LINEAR = frozenset(
    """add sub cat concat concatenate stack hstack vstack pad mean sum repeat repeat_interleave tile roll flip clone
    index_select gather interpolate upsample pixel_shuffle pixel_unshuffle masked_fill where neg cumsum""".split()
)
_CASTS = frozenset(("to", "float", "half", "bfloat16", "type_as", "double"))


class Run:
    """One function, interpreted."""

    def __init__(self, flow: Flow, scope: Scope, origins: dict[Position, Origin]) -> None:
        self._flow, self._scope, self._origins = flow, scope, origins
        self._env: dict[str, Value] = {}
        self._changes: dict[str, str] = {}
        self._returns: set[Any] = set()
        self._followers: dict[str, list[Follower]] = {}

    def effect(self) -> Effect:
        node = self._scope.node
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            self._env[argument.arg] = frozenset((Param(argument.arg),))
        for rest in (arguments.vararg, arguments.kwarg):
            if rest is not None:
                self._env[rest.arg] = frozenset((Inside(Param("*" + rest.arg)),))
        if isinstance(node, ast.Lambda):
            self._returns |= self._value(node.body)
        else:
            self._block(node.body)
        names = self.positional(node, self._scope.owner is not None)
        renamed = {name: str(number) for number, name in enumerate(names)}
        changes = {renamed.get(name, name): what for name, what in self._changes.items()}
        returns = substituted(frozenset(self._returns), Numbered(renamed))
        returned = {o.name for o in returns if isinstance(o, Param)}
        followers = {renamed.get(name, name): found for name, found in self._followers.items()}
        drops = {
            name: Follower(found[0].description, False, any(follower.frozen for follower in found))
            for name, found in followers.items()
            if name not in returned and not any(follower.keeps for follower in found)
        }
        return Effect(changes, returns, tuple(names), drops)

    @staticmethod
    def positional(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, method: bool) -> list[str]:
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        return names[1:] if method else names

    def _follow(self, value: Value, follower: Follower | None) -> None:
        self._flow.follow(value, follower)
        for origin in value:
            if isinstance(origin, Param) and follower is not None:
                self._followers.setdefault(origin.name, []).append(follower)

    # statements

    def _block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self._statement(statement)

    def _branches(self, *bodies: list[ast.stmt]) -> None:
        before = dict(self._env)
        after: dict[str, Value] = {}
        for body in bodies:
            self._env = dict(before)
            self._block(body)
            for name, value in self._env.items():
                after[name] = after.get(name, NOTHING) | value
        self._env = after

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign():
                for target in node.targets[1:]:
                    self._bind(target, self._value(node.value))
                self._assign(node.targets[0], node.value)
            case ast.AnnAssign() if node.value is not None:
                self._assign(node.target, node.value)
            case ast.AugAssign():
                self._augmented(node)
            case ast.Expr():
                self._value(node.value)
            case ast.Return():
                if node.value is not None:
                    self._returns |= self._value(node.value)
            case ast.If():
                self._value(node.test)
                self._branches(node.body, node.orelse)
            case ast.For() | ast.AsyncFor():
                items = opened(self._value(node.iter))
                for _ in range(2):  # what the first round leaves behind, the second one meets
                    self._bind(node.target, items)
                    self._branches(node.body, [])
                self._block(node.orelse)
            case ast.While():
                for _ in range(2):
                    self._value(node.test)
                    self._branches(node.body, [])
                self._block(node.orelse)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    value = self._value(item.context_expr)
                    if item.optional_vars is not None:
                        self._bind(item.optional_vars, value)
                self._block(node.body)
            case ast.Try():
                self._branches([*node.body, *node.orelse], *(handler.body for handler in node.handlers))
                self._block(node.finalbody)
            case ast.Match():
                self._value(node.subject)
                self._branches(*(case.body for case in node.cases), [])
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._branches(node.body, [])
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self._value(child)

    def _assign(self, target: ast.expr, source: ast.expr) -> None:
        pairs = (
            isinstance(target, ast.Tuple) and isinstance(source, ast.Tuple) and len(target.elts) == len(source.elts)
        )
        if not pairs or any(isinstance(element, ast.Starred) for element in (*target.elts, *source.elts)):  # type: ignore[attr-defined]
            self._bind(target, self._value(source))
            return
        values = [self._value(element) for element in source.elts]  # type: ignore[attr-defined]
        for element, value in zip(target.elts, values, strict=True):  # type: ignore[attr-defined]
            self._bind(element, value)

    def _bind(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._env[target.id] = value
        elif isinstance(target, ast.Starred):
            self._bind(target.value, enclosed([value]))
        elif isinstance(target, (ast.Tuple, ast.List)):
            for element in target.elts:
                self._bind(element, opened(value))
        elif isinstance(target, ast.Attribute):
            self._env[text(target)] = value
            if self._is_self(target.value):
                self._flow.keep(self._scope.owner, target.attr, value)
        elif isinstance(target, ast.Subscript):
            base = self._value(target.value)
            tensors = frozenset(o for o in base if not isinstance(o, Inside))
            self._change(tensors, "an assignment to a part of it")
            if isinstance(target.value, ast.Name):
                self._env[target.value.id] = base | enclosed([value])

    def _augmented(self, node: ast.AugAssign) -> None:
        value = self._value(node.value)
        target = node.target
        symbol = {ast.Add: "+=", ast.Sub: "-=", ast.Mult: "*=", ast.Div: "/=", ast.Pow: "**="}.get(type(node.op), "=")
        keeps = not isinstance(node.op, (ast.Add, ast.Sub))
        self._follow(value, Follower(symbol, keeps))
        if position(node) in self._origins:
            self._follow_name(target, Follower("*=", True))
            if isinstance(target, ast.Name):  # where the product is not converted, it overwrites the activation
                self._change(self._env.get(target.id, NOTHING), "*=")
            self._bind(target, frozenset((self._origins[position(node)],)))
            return
        load = self._value(target.value if isinstance(target, ast.Subscript) else target)
        if isinstance(target, ast.Subscript):
            load = opened(load)
        self._change(frozenset(o for o in load if not isinstance(o, Inside)), symbol)
        if isinstance(target, ast.Name):
            self._env[target.id] = load | (enclosed([value]) if any(isinstance(o, Inside) for o in load) else NOTHING)

    def _follow_name(self, target: ast.expr, follower: Follower) -> None:
        if isinstance(target, ast.Name):
            self._follow(self._env.get(target.id, NOTHING), follower)

    def _is_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self._scope.context.self_name

    def _change(self, value: Value, what: str) -> None:
        self._flow.change(value, what)
        for origin in value:
            itself = origin.element if isinstance(origin, Dropped) else origin
            if isinstance(itself, Param):
                self._changes.setdefault(itself.name, what)

    # expressions

    def _value(self, node: ast.expr) -> Value:
        value = self._evaluated(node)
        origin = self._origins.get(position(node))
        if origin is None:
            return value
        return frozenset((origin, *(o for o in value if isinstance(o, Dropped))))  # behind a dropout: the undropped

    def _evaluated(self, node: ast.expr) -> Value:
        match node:
            case ast.Name():
                return self._env.get(node.id, NOTHING)
            case ast.Attribute():
                own = self._env.get(text(node))
                if own is None and self._is_self(node.value):
                    own = self._flow.kept(self._scope.owner, node.attr)
                base = self._value(node.value)
                return own if own is not None else opened(base) if node.attr in _VIEWS else NOTHING
            case ast.Call():
                return self._call(node)
            case ast.BinOp():
                left, right = self._value(node.left), self._value(node.right)
                scaled = isinstance(node.op, (ast.Mult, ast.Div)) and self._constant(node.right, None) is not None
                scaled |= isinstance(node.op, ast.Mult) and self._constant(node.left, None) is not None
                keeps = not isinstance(node.op, (ast.Add, ast.Sub)) and not scaled
                names = {ast.Add: "an addition", ast.Sub: "a subtraction"}
                symbol = names.get(type(node.op), "a product with a number" if scaled else "an operation")
                self._follow(left | right, Follower(symbol, keeps))
                return NOTHING
            case ast.Subscript():
                self._value(node.slice)
                return opened(self._value(node.value))
            case ast.IfExp():
                self._value(node.test)
                return self._value(node.body) | self._value(node.orelse)
            case ast.BoolOp():
                return frozenset().union(*map(self._value, node.values))
            case ast.NamedExpr():
                value = self._value(node.value)
                self._assign(node.target, node.value)
                return value
            case ast.Tuple() | ast.List() | ast.Set():
                return enclosed([self._value(element) for element in node.elts])
            case ast.Dict():
                return enclosed([self._value(element) for element in node.values])
            case ast.Starred() | ast.Await() | ast.FormattedValue() | ast.YieldFrom():
                return self._value(node.value)
            case ast.Yield():
                if node.value is not None:
                    self._returns |= self._value(node.value)
                return NOTHING
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                self._generators(node.generators)
                return enclosed([self._value(node.elt)])
            case ast.DictComp():
                self._generators(node.generators)
                return enclosed([self._value(node.value)])
            case ast.UnaryOp(op=ast.UAdd()):
                return self._value(node.operand)
            case ast.Lambda():
                return NOTHING
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self._value(child)
                return NOTHING

    def _generators(self, generators: list[ast.comprehension]) -> None:
        for generator in generators:
            self._bind(generator.target, opened(self._value(generator.iter)))
            for test in generator.ifs:
                self._value(test)

    def _call(self, node: ast.Call) -> Value:
        arguments = {str(number): self._value(argument) for number, argument in enumerate(node.args)}
        arguments |= {str(k.arg): self._value(k.value) for k in node.keywords}
        everything: Value = frozenset().union(*arguments.values())
        callees = self._scope.objects(node.func)
        if position(node) in self._origins and any(map(is_dropout, callees)):
            for callee in callees:
                if isinstance(callee, Module):
                    self._flow.call(callee)
            return behind_dropout(opened(everything))
        base = NOTHING
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if not callees:
                base = self._value(node.func.value)
        if not callees or all(_is_torchs(callee) for callee in callees):
            return self._operation(node, name, base, arguments)
        result: set[Any] = set()
        carries = any(isinstance(origin, Origin) for origin in opened(everything))
        for callee in callees:
            effect, follower = self._effect(callee, carries)
            given = {str(effect.names.index(k)) if k in effect.names else k: v for k, v in arguments.items()}
            for parameter, value in given.items():
                drops = effect.drops.get(parameter)
                self._follow(opened(value), follower if drops is None else drops)
            for parameter, what in effect.changes.items():
                self._change(given.get(parameter, NOTHING), what)
            result |= substituted(effect.returns, given)
        return frozenset(result)

    def _effect(self, callee: Any, carries: bool) -> tuple[Effect, Follower | None]:
        unknown = Follower(getattr(callee, "__name__", ""), True)
        if isinstance(callee, Module):
            self._flow.call(callee)
            return self._flow.module(callee), follower_of(callee)
        if isinstance(callee, types.MethodType) and isinstance(callee.__self__, Module):
            if callee.__name__ in ("forward", "__call__") and callee.__self__ is not self._scope.owner:
                return self._effect(callee.__self__, carries)
            function: Any = callee.__func__
            return (self._flow.function(function, callee.__self__) if _is_python(function) else Effect()), unknown
        if _is_python(callee) and not foreign(callee) and (carries or self._flow.worth(callee)):
            inside = callee in wrapped_in(self._scope.function)  # a decorator's wrapper calls the method
            owner = self._scope.owner if inside and callee.__qualname__ == self._scope.function.__qualname__ else None
            return self._flow.function(callee, owner), unknown
        return Effect(), unknown

    def _operation(self, node: ast.Call, name: str, base: Value, arguments: dict[str, Value]) -> Value:
        """A function or method of torch, told by its name."""
        method = isinstance(node.func, ast.Attribute) and not self._scope.objects(node.func)
        first = base if method else arguments.get("0") or arguments.get("input") or NOTHING
        others: Value = frozenset().union(*arguments.values())
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if in_place or self._true(node, "inplace", name):
            self._change(opened(first), f"{name}()")
        if "out" in arguments:
            self._change(opened(arguments["out"]), f"{name}(out=...)")
        if name in ("append", "extend", "insert", "update", "setdefault") and isinstance(node.func, ast.Attribute):
            if isinstance(node.func.value, ast.Name):
                held = self._env.get(node.func.value.id, NOTHING)
                self._env[node.func.value.id] = held | enclosed(arguments.values())
            return NOTHING
        drops = self._drops(node, name)
        passes = name in _VIEWS or (name == "dropout" and not drops)
        keeps = name not in _LINEAR and name not in _CASTS and not drops
        self._follow(opened(base | others), None if passes else Follower(f"{name}()", keeps))
        if name in _CASTS or drops:
            return frozenset(o if isinstance(o, Dropped) else Dropped(o) for o in opened(first))
        if in_place or passes or self._true(node, "inplace", name):
            return opened(first)
        if name in ("pop", "popleft", "get", "next"):
            return opened(base | others)
        if name in ("items", "values", "enumerate", "zip", "reversed", "list", "tuple", "iter"):
            return base | others
        if name == "dict":
            return base | others | enclosed(arguments.values())
        return NOTHING

    def _true(self, node: ast.Call, option: str, name: str) -> bool:
        """Whether a call may have ``inplace`` set."""
        for keyword in node.keywords:
            if keyword.arg == option:
                return bool(self._constant(keyword.value, True))
        names = _parameters(name)
        number = names.index(option) if option in names else len(node.args)
        return number < len(node.args) and bool(self._constant(node.args[number], True))

    def _constant(self, node: ast.expr, otherwise: Any) -> Any:
        """The value of a constant, or of an attribute that holds a number."""
        value = node.value if isinstance(node, ast.Constant) else self._scope.one(node)
        return value if isinstance(value, (bool, int, float)) else otherwise

    def _drops(self, node: ast.Call, name: str) -> bool:
        if name != "dropout":
            return False
        given = [k.value for k in node.keywords if k.arg == "p"] + node.args[1:2]
        return not given or bool(self._constant(given[0], 0.5))


@functools.lru_cache(maxsize=256)
def _parameters(name: str) -> tuple[str, ...]:
    """The names of what ``torch.nn.functional``'s function of that name takes, in order; none if there is none."""
    function = getattr(functional, name, None)
    return tuple(inspect.signature(function).parameters) if isinstance(function, types.FunctionType) else ()


def _is_python(callee: Any) -> bool:
    return isinstance(callee, types.FunctionType)


def _is_torchs(callee: Any) -> bool:
    """Whether a callee is one of torch's own functions or unknown to Python: told by its name alone."""
    if isinstance(callee, (Module, types.MethodType)):
        return False
    module = getattr(callee, "__module__", None) or ""
    return not _is_python(callee) or module.partition(".")[0] == "torch"
