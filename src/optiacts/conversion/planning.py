"""What to replace in the functions of one module, and why not the rest."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn import Module
from torch.nn import functional as F

from optiacts import curves
from optiacts.chains import why_not_converted
from optiacts.conversion import sites
from optiacts.conversion.callees import Scope, root_name
from optiacts.conversion.chains import find_chains
from optiacts.conversion.dropouts import find_dropouts
from optiacts.conversion.flow import Flow
from optiacts.conversion.interest import Interest, foreign, names_in, wrapped_in
from optiacts.conversion.known import Known
from optiacts.conversion.norm_recognition import RecognisedNorm, norm_of
from optiacts.conversion.products import find_products
from optiacts.conversion.recognition import Recognised
from optiacts.conversion.rewriting import Plan, Written
from optiacts.conversion.sequences import is_taken
from optiacts.conversion.sites import Drop, Link, Product, Site, Sites, act_of
from optiacts.conversion.source import Position, UnseenError, position, source_of
from optiacts.conversion.spelled import torch_curve
from optiacts.conversion.syntax import text, walk
from optiacts.conversion.values import Origin
from optiacts.norm_calls import norm_name

_DEEPEST = 8


@dataclass
class Found:
    """What was met in a module's functions: what is converted, and what is left for which reason."""

    converted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Method(NamedTuple):
    """A function of a class. ``wrapper`` is what it stands in: staticmethod, classmethod, property or nothing."""

    name: str
    function: Any  # a types.FunctionType, which type checkers would bind
    wrapper: type | None

    def owner(self, module: Module) -> Module | None:
        """The module, if it is what the function gets first."""
        return module if self.wrapper in (None, property) else None


# None: not chosen; a text: to be left for that reason; the empty text: to be converted
Choice = Callable[[types.FunctionType, Position, "Site | Product | Drop | Link", Scope], str | None]


class Planner:
    """Plans for the functions of one model.

    Args:
        modules: all modules of the model.
        gated: whether to convert products.
        norms: whether to follow norms.
        dropout: whether to convert dropouts.
        unkept: the modules whose gated products nobody keeps, by identity, as far as that was tried.
        chains: whether to convert norms with the activations after them.
    """

    def __init__(
        self,
        modules: list[Module],
        gated: bool,
        norms: bool = False,
        dropout: bool = False,
        unkept: frozenset[int] = frozenset(),
        chains: bool = False,
    ) -> None:
        self._modules = {id(module): module for module in modules}
        self._gated, self._dropout = gated, dropout
        self._with_norms, self._with_chains, self._unkept = norms, chains, unkept
        # one conversion reads: nothing changes while it does. With each, what keeps the identity in the key alive
        self._acts: dict[int, tuple[Module, Recognised | None]] = {}
        self._methods: dict[tuple[type, frozenset[str]], list[Method]] = {}
        self._helping: dict[tuple[type, frozenset[str]], frozenset[str]] = {}
        self._norms: dict[int, RecognisedNorm | None] = {}
        self._sites: dict[tuple[types.FunctionType, int | None], Sites] = {}
        self._attributes: dict[int, frozenset[str]] = {}
        self.interest = Interest(dropout)
        self.flow = Flow(self._origins, self._followed, self.interest.of, self._takes)
        self.taken: set[int] = set()  # activation modules, by identity, whose outputs dropouts take
        self.chained: set[int] = set()  # norms and activation modules that are one step somewhere

    # what the flow asks

    def _followed(self, module: Module) -> bool:
        return self.activation(module) is not None or bool(sites.twin_of(module)) or self.norm(module) is not None

    def _takes(self, first: Module, second: Module) -> bool:
        """Whether ``second`` is a dropout that takes the activation ``first`` where they follow each other."""
        return self._dropout and is_taken(first, second)

    def norm(self, module: Module) -> RecognisedNorm | None:
        """Which norm a module computes, if norms are followed."""
        if self._with_norms and id(module) not in self._norms:
            self._norms[id(module)] = norm_of(module)
        return self._norms.get(id(module))

    def activation(self, module: Module) -> Recognised | None:
        """What an activation module computes; None for any other module."""
        if id(module) not in self._acts:
            self._acts[id(module)] = module, sites.activation(module)
        return self._acts[id(module)][1]

    def _origins(self, scope: Scope) -> dict[Position, Origin]:
        found = self.sites(scope)
        functions = [at for at, act in found.acts.items() if act.alone]
        waiting = [at for at, drop in found.drops.items() if drop.source is not None]
        return {at: _origin(scope, at) for at in (*functions, *found.products, *waiting)}

    def sites(self, scope: Scope) -> Sites:
        """The sites of a function; none if nothing in it looks like one."""
        key = scope.function, None if scope.owner is None else self.flow.kind(scope.owner)
        if key not in self._sites:
            owner, function = scope.owner, scope.function
            attributes = frozenset() if owner is None else self.attributes(owner)
            worth = self.interest.of(function, attributes)
            self._sites[key] = Sites()  # while it is looked at: functions that call each other
            self._sites[key] = found = sites.find(scope, self) if worth else Sites()
            find_products(scope, found, self)
            if self._dropout:
                find_dropouts(scope, found, self, self._gated)
            if self._with_chains:
                find_chains(scope, found)
        return self._sites[key]

    def contains(self, module: Module) -> bool:
        return id(module) in self._modules

    def attributes(self, module: Module) -> frozenset[str]:
        """The attributes of a module that are, hold, or evaluate activations."""
        if id(module) not in self._attributes:
            names = {name for name, child in module._modules.items() if child is not None and self._holds(child)}
            for name, value in vars(module).items():
                if isinstance(value, (list, tuple, dict)) and not name.startswith("_"):
                    values = list(value.values()) if isinstance(value, dict) else list(value)
                    names |= {name} if any(callable(v) for v in values[:64]) else set()
                elif callable(value) and not isinstance(value, (type, Module)):
                    names.add(name)
            self._attributes[id(module)] = frozenset(names)
            if not type(module).__module__.startswith("torch.nn.modules"):
                self._attributes[id(module)] |= self._helpers(module, frozenset(names))
        return self._attributes[id(module)]

    def _holds(self, module: Module) -> bool:
        """Whether a child is an activation or a container of some."""
        if isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            return any(self._holds(child) for child in module.children())
        return self.activation(module) is not None

    def _helpers(self, module: Module, attributes: frozenset[str]) -> frozenset[str]:
        """The module's own methods that may evaluate an activation: what calls them may get its output."""
        key = type(module), attributes
        if key not in self._helping:
            self._helping[key] = frozenset(self._find_helpers(module, attributes))
        return self._helping[key]

    def _find_helpers(self, module: Module, attributes: frozenset[str]) -> set[str]:
        found: set[str] = set()
        for kind in own_classes(module):
            for name, value in vars(kind).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if isinstance(function, types.FunctionType) and name != "forward" and not name.startswith("__"):
                    found |= {name} if self.interest.directly(function, attributes) else set()
        return found

    def harmless(self, scope: Scope, call: ast.Call, number: int) -> bool:
        """Whether a call leaves its argument of that number as it is."""
        callees = scope.objects(call.func)
        if not callees and isinstance(call.func, ast.Attribute) and not call.keywords:
            # a method of what only a local variable stands for: of a tensor, by its name
            name = call.func.attr
            local = root_name(call.func) in scope.bound - {scope.context.self_name}
            return local and hasattr(torch.Tensor, name) and not name.endswith("_")
        if callees and all(isinstance(callee, Module) for callee in callees):
            return all(str(number) not in self.flow.module(callee).changes for callee in callees)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else text(call.func)
        options = {k.arg for k in call.keywords}
        of_torch = all(getattr(c, "__module__", "torch") in (None, "torch", "torch._C._nn") for c in callees)
        of_torch |= all(c in vars(F).values() for c in callees if isinstance(c, types.FunctionType))
        return bool(callees) and of_torch and not name.endswith("_") and not options & {"inplace", "out"}

    def returned(self, scope: Scope, call: ast.Call, callee: Any) -> tuple[Site, types.FunctionType, bool] | None:
        """The activation whose output a function returns, the function, and whether it is the module's own method."""
        function, owner = self.followed(scope, call, callee, methods=True)
        if function is None or function is scope.function or hasattr(function, "__wrapped__"):
            return None
        inner = self.flow.scope(function, owner)
        act = None if inner is None else sites.returned_by(inner, self.sites(inner))
        return None if act is None else (act, function, owner is not None)

    def followed(
        self, scope: Scope, call: ast.Call, callee: Any, methods: bool = False
    ) -> tuple[types.FunctionType | None, Module | None]:
        """The function to look into, and the module that it is a method of; ``methods``: the module's own as well."""
        owner = scope.owner
        if isinstance(callee, types.MethodType) and callee.__self__ is owner is not None:
            inherited = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call)
            function = callee.__func__ if inherited or methods else None  # its own methods are its class's
        elif isinstance(callee, types.FunctionType):
            function = callee
            first = call.args[0] if call.args else None
            passes = isinstance(first, ast.Name) and first.id == scope.context.self_name
            inside = callee in wrapped_in(scope.function) and callee.__qualname__ == scope.function.__qualname__
            owner = owner if passes or inside else None
        else:
            return None, None
        if not isinstance(function, types.FunctionType) or foreign(function):
            return None, None
        attributes = frozenset() if owner is None else self.attributes(owner)
        return (function, owner) if self.interest.of(function, attributes) else (None, None)

    def unkept(self, product: Origin) -> bool:
        """Whether nobody keeps a product, so that its factors are less than it and a slot.

        Reading does not tell: a cast may be none, and what is frozen may get an adapter.
        """
        return product.owner in self._unkept

    # plans

    def methods(self, module: Module) -> list[Method]:
        """The functions of a module's classes that may be worth rewriting."""
        key = type(module), self.attributes(module)
        if key not in self._methods:
            self._methods[key] = list(self._find_methods(module, key[1]))
        return self._methods[key]

    def _find_methods(self, module: Module, attributes: frozenset[str]) -> Iterator[Method]:
        defined: dict[str, list[Method]] = {}
        for kind in own_classes(module):
            for name, value in vars(kind).items():
                wrapper = type(value) if isinstance(value, (staticmethod, classmethod, property)) else None
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if isinstance(function, types.FunctionType):
                    defined.setdefault(name, []).append(Method(name, function, wrapper))
        reached = _reached(defined)
        for name, versions in defined.items():
            if name.startswith("__") and name != "__call__":
                continue
            # what the forward does not reach by name (but perhaps by others' hands) counts if it itself looks like it
            look = self.interest.of if name in reached else self.interest.directly
            if any(look(version.function, attributes) for version in versions):
                yield versions[0]

    def plan(self, function: types.FunctionType, owner: Module | None, choose: Choice, found: Found) -> Plan | None:
        """How to rewrite a function and what it calls; None if nothing in it is replaced."""
        return _Planning(self, choose, found).function(function, owner, "")


class _Planning:
    """One function with all that it calls."""

    def __init__(self, planner: Planner, choose: Choice, found: Found) -> None:
        self._planner, self._choose, self._found = planner, choose, found
        self._open: list[types.FunctionType] = []

    def function(
        self, function: types.FunctionType, owner: Module | None, where: str, pending: bool = False
    ) -> Plan | None:
        """The plan of a function; ``pending``: of one that returns an activation for the caller's product."""
        scope = self._planner.flow.scope(function, owner)
        if scope is None or function in self._open or len(self._open) > _DEEPEST or _looks_at_itself(scope):
            return None
        self._open.append(function)
        met = self._planner.sites(scope)
        actions: dict[Position, str] = {}
        known: list[Known] = []
        written: list[Written] = []
        waiting: list[tuple[Plan | None, Plan | None]] = []
        returned = sites.returned_by(scope, met) if pending else None

        def use(act: Site, helper: str) -> None:
            actions[act.at] = helper
            known.extend(entry for entry in act.known if entry not in known)
            if act.written is not None:
                operand = None if act.operand is None else position(act.operand)
                written.append(Written(act.at, act.variable, operand, act.written))
            for inner, own in act.returning:
                inner_owner = owner if own else None
                # once as it is, for what else calls it; its own outcome is told where it stands
                quiet = _Planning(self._planner, self._choose, Found())
                plans = quiet.function(inner, inner_owner, ""), quiet.function(inner, inner_owner, "", pending=True)
                waiting.append((plans[0], plans[1]))

        for at, drop in met.drops.items():
            if self._take(scope, at, drop, where):
                actions[at] = "drop"
                act = act_of(drop)
                if act is not None:
                    self._planner.taken |= {id(callee) for callee in _callees(scope, act)}
                if isinstance(drop.source, Product):
                    actions[drop.source.at] = f"later_{drop.source.form}"
                    actions |= dict(drop.source.clamps)
                    use(drop.source.act, "begin")
                elif drop.source is not None:
                    use(drop.source, "begin_dropped")
        for at, product in met.products.items():
            unkept = product.form not in ("into", "glu") and self._planner.unkept(_origin(scope, at))
            note = " (keeps gate and up)" if unkept else ""
            if at not in actions and self._planner._gated and self._take(scope, at, product, where, note):
                actions[at] = f"unkept_{product.form}" if unkept else product.form
                actions |= dict(product.clamps)
                if product.form != "glu":
                    use(product.act, "begin")
        open_act = returned if returned is not None and returned.at not in actions else None
        if open_act is not None and self._choose(function, open_act.at, open_act, scope) == "":
            use(open_act, "begin")
        for at, act in met.acts.items():
            if at not in actions and act.alone and self._take(scope, at, act, where):
                use(act, "call" if act.written is None else "evaluate")
        for at, link in met.chains.items():
            waits = any(actions.get(act.at, "call") not in ("call", "begin_dropped") for act in link.acts)
            if not waits and self._take(scope, at, link, where):
                actions[at] = "begin_norm"
                actions |= dict(link.passes)
                for act in link.acts:
                    use(act, actions.get(act.at, "call"))
                self._planner.chained |= {id(module) for module in (owner, *link.norms, *link.modules)}
        rewritten = self._called(scope, actions, where)
        self._open.pop()
        if not actions:
            return None
        actions |= {position(node): "class_of" for node in _compared_classes(scope)}
        method = scope.context.self_name is not None
        order = tuple(sorted(actions.items()))
        pairs = tuple((plain, later) for plain, later in waiting if later is not None)
        return Plan(function, order, tuple(known), tuple(written), tuple(rewritten), pairs, method)

    def _called(self, scope: Scope, actions: dict[Position, str], where: str) -> list[Plan]:
        """The plans of other functions that this one calls; their calls become actions."""
        plans: list[Plan] = []
        for call in scope.calls:
            if position(call) in actions:
                continue
            for callee in scope.objects(call.func):
                function, owner = self._planner.followed(scope, call, callee)
                if function is None or torch_curve(function) is not None:
                    continue
                plan = self.function(function, owner, where or _named(function, scope.function))
                if plan is not None:
                    actions[position(call)] = "call"
                    plans += [] if plan in plans else [plan]
        return plans

    def _take(
        self, scope: Scope, at: Position, site: Site | Product | Drop | Link, where: str, note: str = ""
    ) -> bool:
        """Whether to convert a site; notes the outcome, and ``note`` with it."""
        reason = self._choose(scope.function, at, site, scope)
        if reason is None:
            return False
        what = site.what + where
        once = (
            site.kept_once
            if isinstance(site, Site)
            else isinstance(site, Product) and curves.get(site.act.base).keeps_output
        )
        if isinstance(site, Link):
            origins = [Origin(id(module)) for module in site.modules]
            origins += [_origin(scope, act.at) for act in site.acts]
            reasons = (why_not(self._planner.flow, origin, False) for origin in origins)
            reason = reason or why_unchained(site) or next(filter(None, reasons), "")
        else:
            reason = reason or why_not(self._planner.flow, _origin(scope, at), once)
        if reason:
            self._found.left.append(f"{what}: {reason}")
        else:
            self._found.converted.append(what + note)
        return not reason


def why_not(flow: Flow, origin: Origin, kept_once: bool) -> str:
    """Why an activation is better left alone; empty if nothing speaks against it.

    ``kept_once``: PyTorch keeps one tensor for it, so there is a gain only if somebody else keeps the output.
    """
    changed = flow.changed.get(origin)
    if changed is not None:
        return f"its output is changed in place by {changed}"
    frozen = any(follower.frozen for follower in flow.followers.get(origin, ()))  # they may be trained later
    return why_unkept(flow, origin) if kept_once and not frozen else ""


def why_unchained(link: Link) -> str:
    """Why none of the activations may be one step with the norm before it; empty if one may."""
    names = {act.base for act in link.acts} | {entry.recognised.curve for act in link.acts for entry in act.known}
    norms = {(norm_name(norm) or "", _dtype_of(norm)) for norm in link.norms}
    reasons = [why_not_converted(norm, name, dtype) for name in sorted(names) for norm, dtype in norms]
    return reasons[0] if all(reasons) else ""


def _dtype_of(norm: Any) -> torch.dtype:
    """That of a norm module's parameters, for all else float32: what it is given is seen when it runs."""
    parameters = norm.parameters(recurse=False) if isinstance(norm, Module) else ()
    return next((parameter.dtype for parameter in parameters), torch.float32)


def why_unkept(flow: Flow, origin: Origin) -> str:
    """Why nobody keeps an output for backward, with what is frozen now; empty if somebody does, or may."""
    followers = flow.followers.get(origin, [])
    if not followers or any(follower.keeps for follower in followers):
        return ""
    return f"what follows, {followers[0].description}, does not keep its output"


def unseen(function: types.FunctionType, seen: frozenset[types.FunctionType] = frozenset()) -> str:
    """Why the source of a function, or of what it wraps, cannot be read; empty if it can."""
    try:
        source_of(function)
    except UnseenError as error:
        return str(error)
    inner = (unseen(other, seen | {function}) for other in wrapped_in(function) if other not in seen)
    return next(filter(None, inner), "") if hasattr(function, "__wrapped__") else ""


def _callees(scope: Scope, act: Site) -> list[Any]:
    calls = (call for call in scope.calls if position(call) == act.at)
    return [callee for call in calls for callee in scope.objects(call.func)]


def _origin(scope: Scope, at: Position) -> Origin:
    return Origin(0 if scope.owner is None else id(scope.owner), scope.function.__code__, at)


def _looks_at_itself(scope: Scope) -> bool:
    """Whether a function asks for all of its variables, among which our helpers would be."""
    names = [call.func.id for call in scope.calls if isinstance(call.func, ast.Name) and not call.args]
    return bool({"locals", "vars", "dir"} & set(names))


def _compared_classes(scope: Scope) -> Iterator[ast.expr]:
    """Where a function compares an object's very class, ``type(x)`` or ``x.__class__``."""
    for node in walk(scope.node):
        for operand in (node.left, *node.comparators) if isinstance(node, ast.Compare) else ():
            if (isinstance(operand, ast.Attribute) and operand.attr == "__class__") or (
                isinstance(operand, ast.Call) and len(operand.args) == 1 and scope.one(operand.func) is type
            ):
                yield operand


def _named(function: types.FunctionType, caller: types.FunctionType) -> str:
    """Where something was found, if not in the module's own method."""
    return "" if function.__name__ == caller.__name__ else f" in {function.__name__}()"


def own_classes(module: Module) -> list[type]:
    """The classes that a module's methods come from, plain mixins among them, in the order of their precedence."""
    return [kind for kind in type(module).__mro__ if kind not in (Module, object)]


def _reached(defined: dict[str, list[Method]]) -> set[str]:
    """The methods that ``forward`` leads to, by the names that it uses."""
    reached, waiting = set(), ["forward", "__call__"]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in defined:
            continue
        reached.add(name)
        for method in defined[name]:
            for inner in (method.function, *wrapped_in(method.function)):
                waiting += names_in(inner.__code__) & defined.keys()
    return reached
