"""Where an activation's output goes: what changes it in place, and whether anybody keeps it.

A small abstract interpretation of the functions of a model. A *value* is the set of origins that a tensor may share
memory with: activations (or products with one), and the arguments of the function. Views, slices, aliases, branches,
loops, calls of other functions and of child modules are followed; what cannot be seen is taken to return something
new.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn
from torch.nn import Module, Sequential

from optiacts.conversion.callees import Scope
from optiacts.conversion.interest import foreign
from optiacts.conversion.source import Position, UnseenError, position

_VIEWS = frozenset(
    """view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose t permute movedim swapaxes expand
    expand_as narrow select chunk split unbind tensor_split detach contiguous as_strided diagonal unfold swapdims
    moveaxis ravel hsplit vsplit dsplit data real T mT H mH requires_grad_""".split()
)
# operations and modules of torch that keep nothing of their input for backward, but its size
_LINEAR = frozenset(
    """add sub cat concat concatenate stack hstack vstack pad mean sum repeat repeat_interleave tile roll flip clone
    index_select gather interpolate upsample pixel_shuffle pixel_unshuffle masked_fill where neg cumsum""".split()
)
_LINEAR_MODULES = (
    nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
)  # fmt: skip
_CASTS = frozenset(("to", "float", "half", "bfloat16", "type_as", "double"))
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, *_DROPOUTS)
_DEEPEST = 12
_SMALL = 256  # bytes of code: what only passes a tensor on is short


class Origin(NamedTuple):
    """An activation module, by its identity, or an expression in a function (of a module, if it is a method)."""

    owner: int
    code: types.CodeType | None = None
    at: Position | None = None


class Param(NamedTuple):
    """An argument of the function that is looked at; ``name`` with a star stands for all further ones."""

    name: str


class Inside(NamedTuple):
    """An element of a list, tuple or dictionary."""

    element: Any


class Dropped(NamedTuple):
    """What a dropout or a cast returns: the tensor itself at times, but not what is kept for backward."""

    element: Any


Value = frozenset[Any]
NOTHING: Value = frozenset()


@dataclass(frozen=True)
class Follower:
    """Somebody who takes an activation's output. ``keeps`` is False if it surely does not keep it for backward."""

    description: str
    keeps: bool


@dataclass
class Effect:
    """What a call does with its arguments: which it changes in place, and what its result may share memory with.

    Positional parameters are called by their numbers; ``names`` are the names that they have as keywords. ``drops``
    are those that nobody keeps for backward, with who takes them.
    """

    changes: dict[str, str] = field(default_factory=dict)  # parameter -> what changes it
    returns: Value = NOTHING
    names: tuple[str, ...] = ()
    drops: dict[str, str] = field(default_factory=dict)


class Flow:
    """What was found out about a model's functions.

    Args:
        origins: for a scope, the expressions whose values are to be followed.
        activation: whether a module is an activation whose output is to be followed.
        worth: whether a function may evaluate an activation. Others are looked at if they are small.
    """

    def __init__(
        self,
        origins: Callable[[Scope], dict[Position, Origin]],
        activation: Callable[[Module], bool],
        worth: Callable[[types.FunctionType], bool],
    ) -> None:
        self._origins, self._activation = origins, activation
        self.worth = lambda function: len(function.__code__.co_code) < _SMALL or worth(function)
        self.changed: dict[Origin, str] = {}
        self.called: set[int] = set()  # modules, by their identity, that a function seen calls
        self.followers: dict[Origin, list[Follower]] = {}
        self._effects: dict[tuple[types.CodeType, int, int], Effect] = {}
        self._scopes: dict[tuple[int, int], Scope | None] = {}
        self._kept: list[Any] = []  # what the keys tell by its identity
        self._kinds: dict[int, int] = {}
        self._signatures: dict[Any, int] = {}
        self._first: dict[int, tuple[Module, Effect, list[tuple[Any, ...]]]] = {}
        self._done: dict[int, Effect] = {}
        self._logs: list[list[tuple[Any, ...]]] = []
        self._depth = 0

    def scope(self, function: types.FunctionType, owner: Module | None) -> Scope | None:
        """The scope of a function; None if its source is not seen."""
        key = id(function), id(owner)
        if key not in self._scopes:
            self._kept += [function, owner]
            try:
                self._scopes[key] = Scope(function, owner)
            except UnseenError:
                self._scopes[key] = None
        return self._scopes[key]

    def kind(self, module: Module) -> int:
        """A number that modules share whose functions do the same: those of a class, with children of equal kinds."""
        number = self._kinds.get(id(module))
        if number is None:
            children = tuple((n, self.kind(child)) for n, child in module._modules.items() if child is not None)
            own = tuple(sorted((n, _told(value)) for n, value in vars(module).items() if _tells(n, value)))
            signature = type(module), children, own, self._activation(module)
            number = self._kinds[id(module)] = self._signatures.setdefault(signature, len(self._signatures))
            self._kept.append((module, own))
        return number

    def module(self, module: Module) -> Effect:
        """What calling ``module`` with one argument, named ``0``, does.

        Layers of one kind are looked at once; what was found is repeated for the others.
        """
        kind = self.kind(module)
        if id(module) not in self._done:
            if kind not in self._first:
                log: list[tuple[Any, ...]] = []
                self._logs.append(log)
                effect = self._module(module)
                self._logs.pop()
                self._first[kind] = module, effect, log
                self._done[id(module)] = effect
            else:
                self._done[id(module)] = self._repeat(module, *self._first[kind])
        return self._done[id(module)]

    def _repeat(self, module: Module, first: Module, effect: Effect, log: list[tuple[Any, ...]]) -> Effect:
        """What is known of ``first``, said of ``module``."""
        same = {id(a): id(b) for a, b in zip(first.modules(), module.modules(), strict=True)}
        for note, *arguments in log:
            note(*(_renamed(argument, same) for argument in arguments))
        return Effect(effect.changes, _renamed(effect.returns, same), effect.names, effect.drops)

    def _module(self, module: Module) -> Effect:
        if self._activation(module):
            changes = {"0": _described(module)} if getattr(module, "inplace", False) else {}
            origin: Value = frozenset((Origin(id(module)),))
            return Effect(changes, origin | ({Param("0")} if changes else NOTHING))
        if isinstance(module, Sequential) and type(module).forward is Sequential.forward:
            return self._sequence(module)
        if type(module).__module__.startswith("torch.nn.modules") and "forward" not in module.__dict__:
            if isinstance(module, nn.Module) and getattr(module, "inplace", False):
                return Effect({"0": _described(module)}, frozenset((Param("0"),)))
            if isinstance(module, _PASSING):
                passed = Param("0") if follower_of(module) is None else Dropped(Param("0"))
                return Effect({}, frozenset((passed,)))
            if not hasattr(module, "_ff_block") and not isinstance(module, (nn.Transformer,)):
                return Effect()
        forward = getattr(type(module), "forward", None)
        if not isinstance(forward, types.FunctionType) or "forward" in module.__dict__:
            return Effect()
        return self.function(forward, module)

    def function(self, function: types.FunctionType, owner: Module | None) -> Effect:
        """What calling ``function``, a method of ``owner`` if there is one, does."""
        while hasattr(function, "__wrapped__"):  # what decorators do is not followed
            inner = function.__wrapped__
            if not isinstance(inner, types.FunctionType):
                break
            function = inner
        key = function.__code__, id(owner), id(function)
        if key not in self._effects:
            scope = self.scope(function, owner) if self._depth < _DEEPEST else None
            if scope is None:
                return Effect()
            self._effects[key] = Effect()  # while it is looked at: a function that calls itself
            self._depth += 1
            self._effects[key] = _Run(self, scope, self._origins(scope)).effect()
            self._depth -= 1
        return self._effects[key]

    def change(self, value: Value, what: str) -> None:
        """Notes that whatever shares memory with ``value`` is changed in place."""
        for origin in value:
            itself = origin.element if isinstance(origin, Dropped) else origin
            if isinstance(itself, Origin):
                self._note(self._changed, itself, what)

    def follow(self, value: Value, follower: Follower | None) -> None:
        """Notes who takes ``value``."""
        if follower is None:
            return
        for origin in value:
            if isinstance(origin, Origin):
                self._note(self._followed, origin, follower)

    def call(self, module: Module) -> None:
        """Notes that a function calls ``module``."""
        self._note(self._called, id(module))

    def _note(self, what: Callable[..., None], *arguments: Any) -> None:
        what(*arguments)
        for log in self._logs:
            log.append((what, *arguments))

    def _changed(self, origin: Origin, what: str) -> None:
        self.changed.setdefault(origin, what)

    def _followed(self, origin: Origin, follower: Follower) -> None:
        followers = self.followers.setdefault(origin, [])
        if follower not in followers:
            followers.append(follower)

    def _called(self, number: int) -> None:
        self.called.add(number)

    def _sequence(self, sequence: Sequential) -> Effect:
        value: Value = frozenset((Param("0"),))
        changes: dict[str, str] = {}
        for child in sequence:
            effect = self.module(child)
            self.call(child)
            self.follow(value, follower_of(child))
            for what in effect.changes.values():
                self.change(value, what)
                if Param("0") in value:
                    changes["0"] = what
            value = _substituted(effect.returns, {"0": value})
        return Effect(changes, value)


def _tells(name: str, value: Any) -> bool:
    """Whether an attribute of a module may matter to what its functions do with tensors."""
    if name.startswith("_") or name == "training":
        return False
    return name in ("inplace", "p", "forward") or callable(value) or isinstance(value, (list, tuple, dict))


def _told(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, types.MethodType):
        return value.__func__
    return value.__code__ if isinstance(value, types.FunctionType) and not value.__closure__ else id(value)


def _renamed(value: Any, same: dict[int, int]) -> Any:
    """``value`` with other modules in the place of the ones that it names."""
    if isinstance(value, Origin):
        return value._replace(owner=same.get(value.owner, value.owner))
    if isinstance(value, int):
        return same.get(value, value)
    if isinstance(value, (Inside, Dropped)):
        return type(value)(_renamed(value.element, same))
    return frozenset(_renamed(v, same) for v in value) if isinstance(value, frozenset) else value


def follower_of(module: Module) -> Follower | None:
    """How a module treats its input: a dropout keeps a mask, most others keep it, some only pass it on (None)."""
    name = f"{type(module).__name__}"
    if isinstance(module, _DROPOUTS):
        return Follower(name, False) if module.p > 0 else None
    return None if isinstance(module, _PASSING) else Follower(name, not isinstance(module, _LINEAR_MODULES))


def _described(module: Module) -> str:
    return f"the {type(module).__name__} after it"


def _substituted(returns: Value, arguments: dict[str, Value]) -> Value:
    result: set[Any] = set()
    for origin in returns:
        if isinstance(origin, Param):
            result |= arguments.get(origin.name, NOTHING)
        elif isinstance(origin, (Inside, Dropped)):
            result |= {type(origin)(o) for o in _substituted(frozenset((origin.element,)), arguments)}
        else:
            result.add(origin)
    return frozenset(result)


def _opened(value: Value) -> Value:
    """What an element of ``value``, or a view of it, may share memory with."""
    return frozenset(origin.element if isinstance(origin, Inside) else origin for origin in value)


def _enclosed(values: Iterable[Value]) -> Value:
    return frozenset(o if isinstance(o, Inside) else Inside(o) for value in values for o in value)


class _Numbered(dict[str, Any]):
    """Arguments that are parameters again, positional ones by their numbers."""

    def get(self, name: str, default: Any = None) -> Value:
        return frozenset((Param(super().get(name, name)),))


class _Run:
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
        returns = _substituted(frozenset(self._returns), _Numbered(renamed))
        returned = {o.name for o in returns if isinstance(o, Param)}
        followers = {renamed.get(name, name): found for name, found in self._followers.items()}
        drops = {
            name: found[0].description
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
                items = _opened(self._value(node.iter))
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
            self._bind(target.value, _enclosed([value]))
        elif isinstance(target, (ast.Tuple, ast.List)):
            for element in target.elts:
                self._bind(element, _opened(value))
        elif isinstance(target, ast.Attribute):
            self._env[ast.unparse(target)] = value
        elif isinstance(target, ast.Subscript):
            base = self._value(target.value)
            tensors = frozenset(o for o in base if not isinstance(o, Inside))
            self._change(tensors, "an assignment to a part of it")
            if isinstance(target.value, ast.Name):
                self._env[target.value.id] = base | _enclosed([value])

    def _augmented(self, node: ast.AugAssign) -> None:
        value = self._value(node.value)
        target = node.target
        symbol = {ast.Add: "+=", ast.Sub: "-=", ast.Mult: "*=", ast.Div: "/=", ast.Pow: "**="}.get(type(node.op), "=")
        keeps = not isinstance(node.op, (ast.Add, ast.Sub))
        self._follow(value, Follower(symbol, keeps))
        if position(node) in self._origins:
            self._follow_name(target, Follower("*=", True))
            self._bind(target, frozenset((self._origins[position(node)],)))
            return
        load = self._value(target.value if isinstance(target, ast.Subscript) else target)
        if isinstance(target, ast.Subscript):
            load = _opened(load)
        self._change(frozenset(o for o in load if not isinstance(o, Inside)), symbol)
        if isinstance(target, ast.Name):
            self._env[target.id] = load | (
                _enclosed([value]) if any(isinstance(o, Inside) for o in load) else NOTHING
            )

    def _follow_name(self, target: ast.expr, follower: Follower) -> None:
        if isinstance(target, ast.Name):
            self._follow(self._env.get(target.id, NOTHING), follower)

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
        return value if origin is None else frozenset((origin,))

    def _evaluated(self, node: ast.expr) -> Value:
        match node:
            case ast.Name():
                return self._env.get(node.id, NOTHING)
            case ast.Attribute():
                own = self._env.get(ast.unparse(node))
                base = self._value(node.value)
                return own if own is not None else _opened(base) if node.attr in _VIEWS else NOTHING
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
                return _opened(self._value(node.value))
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
                return _enclosed([self._value(element) for element in node.elts])
            case ast.Dict():
                return _enclosed([self._value(element) for element in node.values])
            case ast.Starred() | ast.Await() | ast.FormattedValue() | ast.YieldFrom():
                return self._value(node.value)
            case ast.Yield():
                if node.value is not None:
                    self._returns |= self._value(node.value)
                return NOTHING
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                self._generators(node.generators)
                return _enclosed([self._value(node.elt)])
            case ast.DictComp():
                self._generators(node.generators)
                return _enclosed([self._value(node.value)])
            case ast.Lambda():
                return NOTHING
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self._value(child)
                return NOTHING

    def _generators(self, generators: list[ast.comprehension]) -> None:
        for generator in generators:
            self._bind(generator.target, _opened(self._value(generator.iter)))
            for test in generator.ifs:
                self._value(test)

    def _call(self, node: ast.Call) -> Value:
        arguments = {str(number): self._value(argument) for number, argument in enumerate(node.args)}
        arguments |= {str(k.arg): self._value(k.value) for k in node.keywords}
        everything: Value = frozenset().union(*arguments.values())
        callees = self._scope.objects(node.func)
        base = NOTHING
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if not callees:
                base = self._value(node.func.value)
        if not callees or all(_is_torchs(callee) for callee in callees):
            return self._operation(node, name, base, arguments)
        result: set[Any] = set()
        carries = any(isinstance(origin, Origin) for origin in _opened(everything))
        for callee in callees:
            effect, follower = self._effect(callee, carries)
            given = {str(effect.names.index(k)) if k in effect.names else k: v for k, v in arguments.items()}
            for parameter, value in given.items():
                drops = effect.drops.get(parameter)
                self._follow(_opened(value), follower if drops is None else Follower(drops, False))
            for parameter, what in effect.changes.items():
                self._change(given.get(parameter, NOTHING), what)
            result |= _substituted(effect.returns, given)
        return frozenset(result)

    def _effect(self, callee: Any, carries: bool) -> tuple[Effect, Follower | None]:
        unknown = Follower(getattr(callee, "__name__", ""), True)
        if isinstance(callee, Module):
            self._flow.call(callee)
            return self._flow.module(callee), follower_of(callee)
        if isinstance(callee, types.MethodType) and isinstance(callee.__self__, Module):
            function: Any = callee.__func__
            return (self._flow.function(function, callee.__self__) if _is_python(function) else Effect()), unknown
        if _is_python(callee) and not foreign(callee) and (carries or self._flow.worth(callee)):
            return self._flow.function(callee, None), unknown
        return Effect(), unknown

    def _operation(self, node: ast.Call, name: str, base: Value, arguments: dict[str, Value]) -> Value:
        """A function or method of torch, told by its name."""
        method = isinstance(node.func, ast.Attribute) and not self._scope.objects(node.func)
        first = base if method else arguments.get("0") or arguments.get("input") or NOTHING
        others: Value = frozenset().union(*arguments.values())
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if in_place or self._true(node, "inplace", name):
            self._change(_opened(first), f"{name}()")
        if "out" in arguments:
            self._change(_opened(arguments["out"]), f"{name}(out=...)")
        if name in ("append", "extend", "insert", "update", "setdefault") and isinstance(node.func, ast.Attribute):
            if isinstance(node.func.value, ast.Name):
                held = self._env.get(node.func.value.id, NOTHING)
                self._env[node.func.value.id] = held | _enclosed(arguments.values())
            return NOTHING
        drops = self._drops(node, name)
        passes = name in _VIEWS or (name == "dropout" and not drops)
        keeps = name not in _LINEAR and name not in _CASTS and not drops
        self._follow(_opened(base | others), None if passes else Follower(f"{name}()", keeps))
        if name in _CASTS or drops:
            return frozenset(o if isinstance(o, Dropped) else Dropped(o) for o in _opened(first))
        if in_place or passes or self._true(node, "inplace", name):
            return _opened(first)
        if name in ("pop", "get", "next", "items", "values", "enumerate", "zip", "reversed", "list", "tuple"):
            return base | others
        return NOTHING

    def _true(self, node: ast.Call, option: str, name: str) -> bool:
        """Whether a call may have ``inplace`` set."""
        for keyword in node.keywords:
            if keyword.arg == option:
                return bool(self._constant(keyword.value, True))
        place = {"relu": 1, "silu": 1, "mish": 1, "relu6": 1, "dropout": 3, "leaky_relu": 2, "elu": 2, "celu": 2}
        number = place.get(name, len(node.args))
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


def _is_python(callee: Any) -> bool:
    return isinstance(callee, types.FunctionType)


def _is_torchs(callee: Any) -> bool:
    """Whether a callee is one of torch's own functions or unknown to Python: told by its name alone."""
    if isinstance(callee, (Module, types.MethodType)):
        return False
    module = getattr(callee, "__module__", None) or ""
    return not _is_python(callee) or module.partition(".")[0] == "torch"
