"""Conversion of a model in place, and back."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx
from torch.nn import Module, Sequential

from optiacts import functional
from optiacts.convert import graphs
from optiacts.convert.candidates import activations, helpers, is_candidate, multiplies
from optiacts.convert.known import curve_of, why_left
from optiacts.convert.report import Conversion, ConversionReport
from optiacts.convert.rewritten import Recipe, Rewritten, install, uninstall
from optiacts.convert.selection import Selection, Selector
from optiacts.convert.source import function_source
from optiacts.convert.tracing import UntraceableError, trace


def convert(
    model: Module,
    include: Selector | Iterable[Selector] | None = None,
    exclude: Selector | Iterable[Selector] | None = None,
    gated: bool = True,
    example_inputs: Any = None,
) -> ConversionReport:
    """Makes the activations of ``model`` keep their output instead of their input, in place.

    Activation modules (those of torch.nn, transformers and timm) get a forward that keeps its output. A module
    whose own forward calls an activation as a function, or multiplies an activation's output with another tensor
    (``act(gate) * up``), has that forward traced and rewritten. The results of the model stay what they were, bit
    for bit, and so do its modules' identities, parameters and state dict; ``revert`` undoes it. Convert before
    ``torch.compile``, FSDP and the like; before or after weights are loaded or adapters are added.

    Args:
        model: any module, an activation itself included.
        include: convert only these modules and what they contain. A name pattern as of ``fnmatch`` (``"*.mlp"``;
            ``*`` also matches dots), a module class, a function of (name, module), or several of these.
        exclude: leave these and what they contain alone; wins over ``include``.
        gated: convert products with an activation's output as well, not the activations in them alone.
        example_inputs: inputs of a training step: a tensor, a tuple of positional ones or a mapping of keyword ones.
            With them, activation modules are left alone whose output nobody else keeps, so that nothing would be
            saved. This is found on fake tensors; ``model`` must be frozen where, and in the mode, it is trained in.

    Returns:
        What was converted and what was left alone for which reason; ``print`` shows it as a table. Modules
        converted by an earlier call are not listed again.

    Raises:
        TypeError: ``model`` is no module, or ``include`` or ``exclude`` hold something else than the above.
        ValueError: a name pattern of ``include`` matches no module.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    work = _Conversion(model, Selection(model, include, exclude), gated)
    if example_inputs is not None:
        work.leave(model, example_inputs)
    modules = [(path, module) for path, module in model.named_modules() if not isinstance(module, Rewritten)]
    entries = [entry for path, module in modules for entry in work.visit_parent(path, module)]
    entries += [entry for path, module in modules for entry in work.visit_activation(path, module)]
    order = {path: position for position, (path, _) in enumerate(modules)}
    return ConversionReport(tuple(sorted(entries, key=lambda entry: order[entry.path])))


def revert(model: Module) -> None:
    """Undoes ``convert``: every module of ``model`` has its own class and forward again.

    Raises:
        TypeError: ``model`` is no module.
        RuntimeError: a wrapper (such as FSDP) has changed the class of a converted module since.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, Rewritten):
            uninstall(module)


@dataclass
class _Attempt:
    """A traced method: what was met in it, and its new source if anything is replaced."""

    method: str
    done: list[graphs.Rewrite]
    source: str = ""
    names: dict[str, Any] = field(default_factory=dict)


class _Conversion:
    """One run over a model. All parents come first: they show what speaks against converting a child."""

    def __init__(self, model: Module, selection: Selection, gated: bool) -> None:
        self._selection = selection
        self._gated = gated
        self._reasons: dict[int, str] = {}  # why an activation module must be left, by its identity

    def leave(self, model: Module, example_inputs: Any) -> None:
        """Notes which activation modules would gain nothing on ``example_inputs``."""
        from optiacts.report.sharing import without_gain_on  # the report stands above: it converts, too

        for path, reason in without_gain_on(model, example_inputs).items():
            self._reasons[id(model.get_submodule(path))] = reason

    def visit_parent(self, path: str, module: Module) -> Iterator[Conversion]:
        """A module that may call activations."""
        if isinstance(module, Sequential):
            self._look_along(module)
        elif not _is_activation(module) and is_candidate(module) and not self._selection.excludes(path):
            yield from self._rewrite(path, module, type(module).__qualname__)

    def visit_activation(self, path: str, module: Module) -> Iterator[Conversion]:
        """A module that may be an activation."""
        if path not in self._selection or not _is_activation(module) or _is_ours(module):
            return
        curve = curve_of(module)
        reason = why_left(module) or self._reasons.get(id(module), "")
        kind = type(module).__qualname__
        if curve is not None and not reason:
            install(module, _activation(module, curve))
            yield Conversion(path, kind, curve)
        else:
            yield Conversion(path, kind, reason=reason)

    def _look_along(self, sequence: Sequential) -> None:
        """In a Sequential, what follows an activation is known without a trace."""
        for child, follower in itertools.pairwise(sequence):
            reason = graphs.why_not_before(follower, curve_of(child) or "")
            if reason:
                self._reasons[id(child)] = reason

    def _rewrite(self, path: str, module: Module, kind: str) -> Iterator[Conversion]:
        """Rewrites the forward where there is something to rewrite; its helper methods if it cannot be traced."""
        attempts = []
        untraceable = None
        try:
            attempts.append(self._attempt(path, module, "forward"))
        except UntraceableError as reason:
            untraceable = reason
            self._distrust(module)
            for method in helpers(module):
                with contextlib.suppress(UntraceableError):
                    attempts.append(self._attempt(path, module, method))
        rewritten = [attempt for attempt in attempts if attempt.source]
        if rewritten:
            source = "\n\n".join(attempt.source for attempt in rewritten)
            names = {name: value for attempt in rewritten for name, value in attempt.names.items()}
            install(module, Recipe(type(module), source, tuple(sorted(names.items())), curve=None))
        for attempt in attempts:
            where = "" if attempt.method == "forward" else f" in {attempt.method}()"
            what = ", ".join(dict.fromkeys(rewrite.what for rewrite in attempt.done if not rewrite.reason))
            if what:
                yield Conversion(path, kind, what + where)
            for text in dict.fromkeys(
                f"{rewrite.what}{where}: {rewrite.reason}" for rewrite in attempt.done if rewrite.reason
            ):
                yield Conversion(path, kind, reason=text)
        if untraceable and path in self._selection and multiplies(module):
            yield Conversion(path, kind, reason=f"its forward {untraceable}")

    def _attempt(self, path: str, module: Module, method: str) -> _Attempt:
        """Traces one method and rewrites what is in it; ``UntraceableError`` if that cannot be."""
        whole = path in self._selection

        def chosen(child: str) -> bool:
            return f"{path}.{child}".removeprefix(".") in self._selection

        ways = trace(module, method)
        done: list[graphs.Rewrite] = []
        for graph in ways.graphs:
            self._note_reasons(graph, module)
            done += graphs.gated_products(graph, module, chosen, whole) if self._gated else []
            done += graphs.functions(graph, module) if whole else []
        if all(rewrite.reason for rewrite in done):
            return _Attempt(method, done)
        ways.guards += dict.fromkeys(rewrite.guard for rewrite in done if rewrite.guard)
        return _Attempt(method, done, *function_source(ways))

    def _note_reasons(self, graph: fx.Graph, module: Module) -> None:
        """What follows an activation module in a graph may speak against converting it."""
        for node in graph.nodes:
            if node.op == "call_module":
                child = module.get_submodule(str(node.target))
                curve = curve_of(child)
                reason = "" if curve is None else graphs.why_not(node, module, curve)
                if reason:
                    self._reasons[id(child)] = reason

    def _distrust(self, module: Module) -> None:
        """Without a trace, a module that works in place might follow the activation beside it."""
        if any(getattr(child, "inplace", False) and curve_of(child) is None for child in module.children()):
            for child in activations(module):
                self._reasons[id(child)] = "a module beside it works in place, and the order cannot be traced"


def _is_activation(module: Module) -> bool:
    return curve_of(module) is not None or why_left(module) is not None


def _is_ours(module: Module) -> bool:
    return type(module).__module__ == "optiacts.nn"


def _activation(module: Module, curve: str) -> Recipe:
    """The recipe of an activation module. All known ones are called with the input alone."""
    parameters = list(inspect.signature(type(module).forward).parameters)
    name = parameters[1]
    inplace = ", self.inplace" if curve != "mish_python" and hasattr(module, "inplace") else ""
    source = f"def forward(self, {name}):\n    return apply({curve!r}, {name}{inplace})\n"
    return Recipe(type(module), source, (("apply", functional.apply),), curve)
