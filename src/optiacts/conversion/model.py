"""Conversion of a model in place, and back."""

from __future__ import annotations

import dataclasses
import threading
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import Module

from optiacts.conversion import adapters, sites
from optiacts.conversion.callees import Scope
from optiacts.conversion.converted import KeptNorm, NormMode, Recipe, Request, install, is_converted, uninstall
from optiacts.conversion.followers import is_linear
from optiacts.conversion.hooked import hooks_aside
from optiacts.conversion.interest import enclosed_in, names_in
from optiacts.conversion.norm_recognition import norm_of, why_no_norm
from optiacts.conversion.planning import Found, Planner, own_classes, unseen, why_not, why_unkept
from optiacts.conversion.purity import ImpureError
from optiacts.conversion.recognition import Recognised, recognise_module
from optiacts.conversion.rehearsal import Rehearsal, rehearse
from optiacts.conversion.report import Conversion, ConversionReport
from optiacts.conversion.rewriting import Plan
from optiacts.conversion.selection import Selection, Selector
from optiacts.conversion.sequences import chains_in, pairs_in, steps_in
from optiacts.conversion.sites import Drop, Link, Product, Site, act_of
from optiacts.conversion.source import Position
from optiacts.conversion.values import Origin
from optiacts.norm_calls import norm_name

_one_at_a_time = threading.RLock()


class Options(NamedTuple):
    """What ``convert`` converts besides activations."""

    gated: bool = True
    dropout: bool = True
    norms: bool = True
    autocast: bool = False
    chains: bool = True


def convert(
    model: Module,
    include: Selector | Iterable[Selector] | None = None,
    exclude: Selector | Iterable[Selector] | None = None,
    gated: bool = True,
    dropout: bool = True,
    example_inputs: Any = None,
    norms: bool = True,
    autocast: bool = False,
    chains: bool = True,
) -> ConversionReport:
    """Makes the activations and norms of ``model`` keep their output instead of their input, in place.

    Activation modules, whatever their class, get a forward that keeps its output. A function of the model that
    calls an activation, writes one out, or multiplies an activation's output with another tensor (``act(gate) *
    up``), is replaced by its own source with these expressions exchanged for calls that decide when they run. A
    norm module, a LayerNorm or RMSNorm of whatever class, runs its own forward and keeps its output, or its input
    where nobody else keeps the output. A norm whose output only an activation takes, both called in one function or
    following each other in a ``Sequential``, becomes one step with it. What an activation or a norm is, is
    recognised by what it computes. The results of the model stay what they were, bit for bit, and so do its
    modules' identities, parameters and state dict; ``revert`` undoes it. Convert before ``torch.compile``, FSDP and
    the like; before or after weights are loaded or adapters are added.

    Args:
        model: any module, an activation itself included.
        include: convert only these modules and what they contain. A name pattern as of ``fnmatch`` (``"*.mlp"``;
            ``*`` also matches dots), a module class, a function of (name, module), or several of these.
        exclude: leave these and what they contain alone; wins over ``include``.
        gated: convert products with an activation's output as well, not the activations in them alone.
        dropout: convert dropouts as well: to one bit per element, and to none behind an activation or a product.
        example_inputs: inputs of a training step: a tensor, a tuple of positional ones or a mapping of keyword ones.
            With them, activation modules are left alone whose output nobody else keeps, so that nothing would be
            saved, such norms keep their input and such products their factors, and whatever makes an output that is
            changed in place later is left alone; the report tells the saved bytes.
            This is found on fake tensors; ``model`` must be frozen where, and in the mode, it is trained in.
        norms: convert norms as well.
        autocast: for training under ``torch.autocast`` with weights in float32. There each Linear casts its input,
            and of one tensor each makes a copy. Linears then share one copy of what several of them are given, and a
            norm before them keeps that copy and remainder bits, 2.25 bytes per element, instead of its input's 4. No
            dtype changes, but a norm's gradient is then that of a 16-bit output. Without autocast nothing differs.
        chains: convert a norm and the activation after it as one step, which keeps the activation's output alone.

    Returns:
        What was converted and what was left alone for which reason; ``print`` shows it as a table. Modules
        converted by an earlier call are not listed again.

    Raises:
        TypeError: ``model`` is no module, or ``include`` or ``exclude`` hold something else than the above.
        ValueError: a name pattern of ``include`` matches no module, or ``model`` does not run on ``example_inputs``.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    with _one_at_a_time, hooks_aside(model):
        selection = Selection(model, include, exclude)
        options = Options(gated, dropout, norms, autocast, chains)
        if example_inputs is None:
            return _Conversion(model, selection, options).run()

        def rehearsed(copy: Module, found: Rehearsal) -> object:
            return _Conversion(copy, selection, options, found).run()

        def adapted(copy: Module) -> None:
            _Conversion(copy, selection, options).adapt()

        rehearsal = rehearse(model, example_inputs, rehearsed, autocast, adapted)
        report = _Conversion(model, selection, options, rehearsal).run()
        return dataclasses.replace(report, saved_bytes=rehearsal.saved_bytes)


def convert_where_it_pays(model: Module, no_gain: dict[str, str], options: Options) -> ConversionReport:
    """``convert``, but for the activations of the paths ``no_gain``, unless a dropout takes their outputs."""
    with _one_at_a_time, hooks_aside(model):
        rehearsal = Rehearsal(no_gain=no_gain)
        return _Conversion(model, Selection(model, None, None), options, rehearsal).run()


def revert(model: Module) -> None:
    """Undoes ``convert``: every module of ``model`` has its own class and forward again.

    Raises:
        TypeError: ``model`` is no module.
        RuntimeError: a wrapper (such as FSDP) has changed the class of a converted module since.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    with _one_at_a_time, hooks_aside(model):
        for module in model.modules():
            if is_converted(module):
                uninstall(module)


def convert_loaded(module: Module, request: Request) -> None:
    """Converts one module that comes from a pickle as it was converted before."""
    with _one_at_a_time:
        if request.activation:
            recognised = sites.activation(module)
            if recognised is not None:
                install(module, Recipe(type(module), activation=recognised, gated=request.gated))
            return
        if request.twin:
            install(module, Recipe(type(module), gated=request.gated, twin=request.twin))
            return
        if request.norm is not None:
            norm = norm_of(module)
            if norm is not None:
                install(module, Recipe(type(module), gated=request.gated, norm=KeptNorm(norm, request.norm)))
            return
        if request.linear:
            install(module, Recipe(type(module), gated=request.gated, linear=True))
            return
        if request.adapter:
            install(module, Recipe(type(module), gated=request.gated, adapter=request.adapter))
            return
        if request.sequence:
            steps = steps_in(module, *request.sequence)
            install(module, Recipe(type(module), sequence=steps, gated=request.gated))
            return

        def choose(
            function: types.FunctionType, at: Position, site: Site | Product | Drop | Link, scope: Scope
        ) -> str | None:
            return "" if (function.__module__, function.__qualname__, at) in request.spots else None

        planner = Planner([module, *module.modules()], request.gated, dropout=request.dropout, chains=True)
        recipe = _recipe(planner, module, choose, Found(), request.gated, request.dropout)
        if recipe is not None:
            install(module, recipe)


def _recipe(planner: Planner, module: Module, choose: Any, found: Found, gated: bool, dropout: bool) -> Recipe | None:
    methods: list[tuple[str, Plan]] = []
    wrappers: list[tuple[str, type]] = []
    for method in planner.methods(module):
        name = method.name
        if name in vars(module):
            continue  # the instance has its own
        here = Found()
        plan = planner.plan(method.function, method.owner(module), choose, here)
        where = "" if name == "forward" else f" in {name}()"
        found.converted += [what if " in " in what else what + where for what in here.converted]
        found.left += [_with_place(what, where) for what in here.left]
        if plan is not None:
            methods.append((name, plan))
            wrappers += [] if method.wrapper is None else [(name, method.wrapper)]
    return Recipe(type(module), tuple(methods), None, tuple(wrappers), gated, dropout=dropout) if methods else None


def _with_place(text: str, where: str) -> str:
    what, _, reason = text.partition(": ")
    return text if " in " in what else f"{what}{where}: {reason}"


class _Conversion:
    """One run over a model. All functions are read before anything is changed."""

    def __init__(
        self,
        model: Module,
        selection: Selection,
        options: Options,
        rehearsal: Rehearsal | None = None,
    ) -> None:
        self._selection = selection
        self._gated, self._dropout, self._norms, self._autocast, self._chains = options
        self._model = model
        self._modules = [(path, module) for path, module in model.named_modules()]
        self._paths = {id(module): path for path, module in self._modules}
        unkept = rehearsal.products if rehearsal is not None else set()
        products = frozenset(id(module) for path, module in self._modules if path in unkept)
        every = [module for _, module in self._modules]
        self._planner = Planner(every, options.gated, options.norms, options.dropout, products, options.chains)
        self._rehearsal = rehearsal
        self._reasons = rehearsal.reasons if rehearsal is not None else {}  # why a module must be left, by its path
        self._no_gain = rehearsal.no_gain if rehearsal is not None else {}  # unless a dropout takes its output

    def run(self) -> ConversionReport:
        recipes: list[tuple[str, Module, Recipe]] = []
        entries: list[Conversion] = []
        adapted = self._adapters(recipes, entries)
        new = [(path, one) for path, one in self._modules if not is_converted(one) and id(one) not in adapted]
        for _, module in self._modules:
            self._planner.flow.module(module)
            if not _opaque(module):
                for method in self._planner.methods(module):
                    self._planner.flow.function(method.function, method.owner(module))
        for path, module in new:
            entries += self._functions(path, module, recipes)
            entries += self._sequence(path, module, recipes)
        for path, module in new:
            entries += self._activation(path, module, recipes)
            if self._norms and path in self._selection:
                entries += self._norm(path, module, recipes)
            if self._autocast and path in self._selection and is_linear(module):
                recipes.append((path, module, Recipe(type(module), gated=self._gated, linear=True)))
                entries.append(Conversion(path, type(module).__qualname__, "shared cast"))
        entries = self._install(recipes, entries)
        order = {path: position for position, (path, _) in enumerate(self._modules)}
        return ConversionReport(tuple(sorted(entries, key=lambda entry: order[entry.path])))

    def adapt(self) -> None:
        """Converts nothing but adapters, which changes who keeps what."""
        recipes: list[tuple[str, Module, Recipe]] = []
        self._adapters(recipes, [])
        self._install(recipes, [])

    def _adapters(self, recipes: list[tuple[str, Module, Recipe]], entries: list[Conversion]) -> set[int]:
        """LoRA layers whose adapters need not keep tensors of their own; the modules that take part."""
        taken: set[int] = set()
        for path, layer in self._modules:
            if path not in self._selection or is_converted(layer):
                continue
            parts = adapters.parts(layer, self._autocast)
            recipes += [
                (self._paths[id(one)], one, Recipe(type(one), gated=self._gated, adapter=role)) for one, role in parts
            ]
            taken |= {id(one) for one, _ in parts}
            if parts:
                entries.append(Conversion(path, type(layer).__qualname__, adapters.LAYER, note=adapters.NOTE))
        return taken

    def _install(self, recipes: list[tuple[str, Module, Recipe]], entries: list[Conversion]) -> list[Conversion]:
        """Gives the modules their new classes, all of them or, if something fails, none."""
        done: list[Module] = []
        try:
            for path, module, recipe in recipes:
                try:
                    install(module, recipe, path)
                    done.append(module)
                except TypeError as error:  # a class that has or allows no subclass of the same layout
                    entries = [entry for entry in entries if entry.path != path or not entry.what]
                    reason = f"its class cannot be exchanged: {error}"
                    entries.append(Conversion(path, type(module).__qualname__, reason=reason))
        except BaseException:
            for module in done:
                uninstall(module)
            raise
        return entries

    def _functions(
        self, path: str, module: Module, recipes: list[tuple[str, Module, Recipe]]
    ) -> Iterator[Conversion]:
        """A module whose functions may call activations."""
        if _opaque(module) or self._selection.excludes(path):
            return
        if self._planner.activation(module) is not None or self._planner.norm(module) is not None:
            return
        if type(module).__module__ == "torch.nn.modules.activation":
            return  # it is one, and no curve has its values and gradients
        kind = type(module).__qualname__
        whole = path in self._selection

        def choose(
            function: types.FunctionType, at: Position, site: Site | Product | Drop | Link, scope: Scope
        ) -> str | None:
            act = act_of(site)
            owned = [] if act is None else self._among(self._callees(scope, act))
            chosen = any(child in self._selection for child in owned) if owned else whole
            if isinstance(site, Drop):
                dropouts = self._among(scope.objects(site.call.func))
                chosen = chosen and all(child in self._selection for child in dropouts)
            if isinstance(site, Link):
                norms = self._among(site.norms)
                chosen = chosen and all(child in self._selection for child in norms)
            return self._reasons.get(path, "") if chosen else None

        if "forward" in module.__dict__:
            if whole and any(method.name == "forward" for method in self._planner.methods(module)):
                yield Conversion(path, kind, reason="its forward was replaced on the instance")
            return
        found = Found()
        recipe = _recipe(self._planner, module, choose, found, self._gated, self._dropout)
        if recipe is not None:
            recipes.append((path, module, recipe))
            yield from (Conversion(path, kind, what) for what in dict.fromkeys(found.converted))
        yield from (Conversion(path, kind, reason=text) for text in dict.fromkeys(found.left))
        if whole:
            yield from self._unseen(path, module)

    def _callees(self, scope: Scope, act: Site) -> list[Module]:
        calls = [call for call in scope.calls if act.written is None and _at(call) == act.at]
        return [callee for call in calls for callee in scope.objects(call.func) if isinstance(callee, Module)]

    def _unseen(self, path: str, module: Module) -> Iterator[Conversion]:
        """What may call activations and could not be read."""
        for name, function, _ in self._planner.methods(module):
            reason = unseen(function)
            if reason:
                place = "forward" if name == "forward" else f"{name}()"
                yield Conversion(path, type(module).__qualname__, reason=f"its {place} is left: {reason}")

    def _among(self, callees: Iterable[Any]) -> list[str]:
        """The paths of those that are modules of the model."""
        return [self._paths[id(callee)] for callee in callees if id(callee) in self._paths]

    def _sequence(self, path: str, module: Module, recipes: list[tuple[str, Module, Recipe]]) -> Iterator[Conversion]:
        """A ``Sequential`` with dropouts right behind activations, or activations right behind norms."""
        if path not in self._selection:
            return
        kind = type(module).__qualname__
        dropped = self._steps(pairs_in(module) if self._dropout else [])
        chained = self._steps(chains_in(module) if self._chains else [])
        found = {f"{_curve_of(act)} + dropout": self._changed(act) for act, _ in dropped}
        linked = {
            f"{norm_name(norm)} + {_curve_of(act)}": self._reasons.get(path, "") or self._changed(act)
            for norm, act in chained
        }
        taken = [not any(reasons.values()) and bool(reasons) for reasons in (found, linked)]
        for what, reason in (found | linked).items():
            if reason:
                yield Conversion(path, kind, reason=f"{what}: {reason}")
        if not any(taken):
            return
        if taken[0]:
            self._planner.taken |= {id(act) for act, _ in dropped}
        if taken[1]:
            self._planner.chained |= {id(one) for pair in chained for one in pair}
        recipe = Recipe(type(module), sequence=steps_in(module, *taken), gated=self._gated)
        recipes.append((path, module, recipe))
        for what in (*(found if taken[0] else ()), *(linked if taken[1] else ())):
            yield Conversion(path, kind, what)

    def _steps(self, pairs: list[tuple[Module, Module]]) -> list[tuple[Module, Module]]:
        """The pairs, if all of them are selected; a ``Sequential`` does all or none."""
        return pairs if all(child in self._selection for pair in pairs for child in self._among(pair)) else []

    def _changed(self, act: Module) -> str:
        return why_not(self._planner.flow, Origin(id(act)), False)

    def _activation(
        self, path: str, module: Module, recipes: list[tuple[str, Module, Recipe]]
    ) -> Iterator[Conversion]:
        """A module that may be an activation."""
        if path not in self._selection or type(module).__module__.startswith("optiacts.nn"):
            return
        kind = type(module).__qualname__
        twin = sites.twin_of(module)
        if twin:
            reason, note = self._use(path, module, True)
            if not reason:
                recipes.append((path, module, Recipe(type(module), gated=self._gated, twin=twin)))
            yield Conversion(path, kind, "" if reason else twin, reason=reason, note=note)
            return
        recognised, reason = _judged(module)
        if recognised is None:
            if reason and id(module) not in self._planner.taken:
                yield Conversion(path, kind, reason=reason)
            return
        once = sites.kept_once(recognised.base) and not recognised.steps
        reason, note = self._use(path, module, once)
        if reason and id(module) in self._planner.chained:
            return
        if reason:
            yield Conversion(path, kind, reason=reason)
            return
        recipes.append((path, module, Recipe(type(module), activation=recognised, gated=self._gated)))
        yield Conversion(path, kind, recognised.base, note=note)

    def _norm(self, path: str, module: Module, recipes: list[tuple[str, Module, Recipe]]) -> Iterator[Conversion]:
        """A module that may be a norm."""
        kind = type(module).__qualname__
        recognised = self._planner.norm(module)
        if recognised is None:
            reason = why_no_norm(module)
            if reason and id(module) not in self._planner.chained:
                yield Conversion(path, kind, reason=reason)
            return
        reason, note = self._use(path, module, False)
        if reason:
            yield Conversion(path, kind, reason=reason)
            return
        unkept = self._unkept(path, module)
        kept = KeptNorm(recognised, NormMode(not unkept, self._autocast))
        recipe = Recipe(type(module), gated=self._gated, norm=kept)
        recipes.append((path, module, recipe))
        mode = f"keeps its input: {unkept}" if unkept else "keeps its output"
        yield Conversion(path, kind, recognised.name, note=f"{mode}; {note}" if note else mode)

    def _unkept(self, path: str, module: Module) -> str:
        """Why nobody keeps a norm's output, so that the norm had better keep its input; empty if somebody may."""
        if self._rehearsal is not None and path in self._rehearsal.norms:
            return self._rehearsal.norms[path]
        return why_unkept(self._planner.flow, Origin(id(module)))

    def _use(self, path: str, module: Module, kept_once: bool) -> tuple[str, str]:
        """Why a module is left because of who calls it or takes its output; if it is not, what to note of that."""
        no_gain = "" if id(module) in self._planner.taken else self._no_gain.get(path, "")
        reason = self._reasons.get(path, "") or no_gain
        reason = reason or why_not(self._planner.flow, Origin(id(module)), kept_once)
        unused = id(module) not in self._planner.flow.called and path != ""
        if not reason and unused and self._never_named(module):
            reason = "no forward calls it"
        return reason, "no forward that we can read calls it" if unused else ""

    def _never_named(self, module: Module) -> bool:
        """Whether no function of a module that owns ``module`` names it."""
        return not any(_names(owner, path.rpartition(".")[2]) for path, owner in self._owners(module))

    def _owners(self, module: Module) -> Iterator[tuple[str, Module]]:
        """Every path of ``module``, with the module that owns it there."""
        every = dict(self._model.named_modules(remove_duplicate=False))
        for path, other in every.items():
            if other is module:
                yield path, every[path.rpartition(".")[0]]


def _curve_of(act: Module) -> str:
    recognised = sites.activation(act)
    return recognised.base if recognised is not None else ""


def _names(owner: Module, name: str) -> bool:
    """Whether a function of ``owner`` names the child ``name``, or might reach it otherwise."""
    if isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) or "forward" in owner.__dict__:
        return True
    for kind in own_classes(owner):
        for method, value in vars(kind).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if not isinstance(function, types.FunctionType) or method == "__init__":
                continue
            for inner in (function, *enclosed_in(function)):
                names = names_in(inner.__code__)
                if name in names or names & {"children", "modules", "named_children", "named_modules", "_modules"}:
                    return True
    return False


def _at(node: Any) -> Position:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _opaque(module: Module) -> bool:
    """Modules whose functions are not Python source of the user's."""
    kinds = (torch.jit.ScriptModule, torch.fx.GraphModule, nn.ModuleList, nn.ModuleDict, nn.Sequential)
    return isinstance(module, kinds) and (
        not isinstance(module, nn.Sequential) or type(module).forward is nn.Sequential.forward
    )


_LIBRARIES = ("torch.nn.modules.activation", "transformers.activations", "timm.layers.activations")
_NOT_POINTWISE = (nn.MultiheadAttention, nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d)


def _judged(module: Module) -> tuple[Recognised | None, str]:
    """What an activation module computes, or why it is left; neither for a module that is none."""
    of_library = type(module).__module__.startswith(_LIBRARIES) and not isinstance(module, _NOT_POINTWISE)
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return None, ""
    if "forward" in module.__dict__:
        return None, "its forward was replaced on the instance" if of_library else ""
    if module._parameters:
        return None, "learnable: its parameters' gradient needs the input" if of_library else ""
    if module._modules or module._buffers:
        return None, ""
    try:
        recognised = recognise_module(module)
    except ImpureError as error:
        if str(error) != "no curve has its values and gradients":
            return None, ""
        return None, "no curve for this activation"
    if not recognised.keeps_input:
        return None, "PyTorch keeps its result already"
    return recognised, ""
