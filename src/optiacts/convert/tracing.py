"""Tracing a module's own forward with torch.fx, all its children as leaves, and only if the trace is faithful.

``torch.fx`` alone believes what it meets: it takes attributes for constants, a tensor for no tensor, a branch
for the only one, and forgets contexts. Here

- a branch on a computed value is followed both ways, each way on a trace of its own;
- optional arguments stand at their defaults, and attributes at the values they have: both are recorded as
  guards, conditions under which the trace holds;
- what can be neither recorded nor followed (a loop over a tensor, a context entered, a random draw, an attribute
  written, a mutable object read) raises ``UntraceableError`` with the reason.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import random
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode

from optiacts.convert.known import gate_of

MOST_PATHS = 8


class UntraceableError(Exception):
    """Why a forward cannot be traced faithfully."""


def fork(condition: Any, taken: bool) -> None:
    """Marks in a graph where a branch was taken; the source writer turns it into an ``if``."""


@dataclass
class Trace:
    """All ways through a method, and the conditions under which they are all."""

    method: str
    signature: inspect.Signature
    graphs: list[fx.Graph]
    guards: list[str]  # Python conditions on ``self`` and the arguments
    names: dict[str, Any]  # what the guards refer to


def trace(module: Module, method: str = "forward") -> Trace:
    """Traces the forward, or another method, of ``type(module)``; ``UntraceableError`` says why it cannot be."""
    signature, required = _signature(getattr(type(module), method))
    watch = _Watch(module)
    graphs: list[fx.Graph] = []
    pending: list[tuple[bool, ...]] = [()]
    while pending:
        tracer = _Tracer(method, required, pending.pop())
        graphs.append(_run(tracer, module, watch))
        pending += [(*tracer.decisions[:depth], True) for depth in range(tracer.given, len(tracer.decisions))]
        if len(graphs) + len(pending) > MOST_PATHS:
            raise UntraceableError("branches too often")
    # without gradients there is nothing to save: then the original method runs, whatever it asks for the mode
    guards = ["torch.is_grad_enabled()", *_argument_guards(signature), *watch.guards]
    return Trace(method, signature, graphs, guards, watch.names)


def _run(tracer: _Tracer, module: Module, watch: _Watch) -> fx.Graph:
    dice = random.getstate()
    try:
        with torch.enable_grad(), watch.recording(), _NoRealTensors():
            graph = tracer.trace(module)
    except UntraceableError:
        raise
    except Exception as error:
        line = str(error).strip().split("\n")[0][:100]
        raise UntraceableError(f"cannot be traced: {line or type(error).__name__}") from error
    if random.getstate() != dice:
        random.setstate(dice)
        raise UntraceableError("draws random numbers")
    return graph


def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature, list[str]]:
    """The signature of a method without ``self``, and the names of the arguments that have no default."""
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in list(signature.parameters.values())[1:]]
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    others = [p for p in parameters if p.name not in required]
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in others):
        raise UntraceableError("has a signature that we do not handle")
    return inspect.Signature(parameters), required


def _argument_guards(signature: inspect.Signature) -> Iterator[str]:
    """All optional arguments have to be at their defaults."""
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            yield f"not {p.name}"
        elif p.default is not p.empty:
            condition = constant_condition(p.name, p.default)
            if condition is None:
                raise UntraceableError(f"the default of its argument {p.name} is no constant")
            yield condition


def constant_condition(expression: str, value: Any) -> str | None:
    """The condition that ``expression`` still has the constant ``value``; None if it is no constant."""
    if value is None or isinstance(value, bool):
        return f"{expression} is {value}"
    if type(value) in (int, str) or (type(value) is float and math.isfinite(value)) or type(value) is torch.dtype:
        return f"{expression} == {value!r}"
    return None


class _Proxy(fx.Proxy):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """``isinstance(x, torch.Tensor)`` reads this. fx would answer no, and a branch would stay unseen."""
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__") == "torch.nn.parameter":
            frame = frame.f_back  # Parameter has an instance check of its own
        if frame.f_globals.get("__name__", "").startswith("torch."):
            return _Proxy
        if self.node.op == "get_attr":
            return torch.nn.Parameter
        raise UntraceableError("asks for the type of a tensor")


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, method: str, required: list[str], given: tuple[bool, ...]) -> None:
        super().__init__()
        self.traced_func_name = method
        self._required = required
        self.given = len(given)  # decisions made in advance; at further forks the answer is no
        self.decisions = list(given)
        self._forks = 0
        self._context: Any = None

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self._required)]

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if m in (self.submodule_paths or {}):
            return super().call_module(m, forward, args, kwargs)
        if next(m.parameters(), None) is None and next(m.buffers(), None) is None and gate_of(m) is not None:
            return forward(*args, **kwargs)  # a global activation object, as transformers.activations.gelu
        raise UntraceableError(f"calls a {type(m).__name__} that it does not own")

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        self._context = self._context or _context()  # fx makes its first node before it runs the method
        if _context() != self._context:
            raise UntraceableError("enters a context (autocast, no_grad, ...)")
        return super().create_node(*args, **kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if self._forks == len(self.decisions):
            self.decisions.append(False)
        taken = self.decisions[self._forks]
        self._forks += 1
        self.create_node("call_function", fork, (obj.node, taken), {})
        return taken


class _NoRealTensors(TorchDispatchMode):
    """Forbids what fx would run once and take for a constant: ``torch.rand``, ``torch.tensor`` and the like."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise UntraceableError(f"computes with tensors that do not depend on its arguments ({func})")


def _context() -> tuple[Any, ...]:
    """What a context manager around an operation may have changed."""
    autocast = [
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", _accelerator())
    ]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, _saved_tensors_hooks()


def _saved_tensors_hooks() -> Any:
    """The hooks that checkpointing and offloading put around what they run."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def _accelerator() -> str:
    """The type of the accelerator that this build of PyTorch is for."""
    accelerator = torch.accelerator.current_accelerator()
    return "cuda" if accelerator is None else accelerator.type


_INTERNAL = frozenset(Module().__dict__) - {"training"}


class _Watch:
    """Records what attributes of the module and its descendants a forward reads, and forbids writing them."""

    def __init__(self, module: Module) -> None:
        self._paths = {id(m): ".".join(("self", *filter(None, [path]))) for path, m in module.named_modules()}
        self._conditions: dict[str, str] = {}
        self.names: dict[str, Any] = {}

    @property
    def guards(self) -> list[str]:
        return list(self._conditions.values())

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        set_attribute = Module.__setattr__

        def getattribute(module: Module, name: str) -> Any:
            value = object.__getattribute__(module, name)
            if (
                name not in _INTERNAL
                and not name.startswith("__")
                and name in object.__getattribute__(module, "__dict__")
            ):
                self._read(module, name, value)
            return value

        def setattr_(module: Module, name: str, value: Any) -> None:
            if id(module) in self._paths:
                raise UntraceableError(f"writes the attribute {name}")
            set_attribute(module, name, value)

        Module.__getattribute__ = getattribute  # type: ignore[method-assign, assignment]
        Module.__setattr__ = setattr_  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del Module.__getattribute__
            Module.__setattr__ = set_attribute  # type: ignore[method-assign]

    def _read(self, module: Module, name: str, value: Any) -> None:
        path = self._paths.get(id(module))
        if path is None:
            return
        expression = f"{path}.{name}"
        condition = constant_condition(expression, value)
        if condition is None and isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            known_as = f"known_{expression.replace('.', '_')}"
            self.names[known_as] = value
            condition = f"{expression} is {known_as}"
        if condition is None:
            raise UntraceableError(f"reads {expression}, which may change ({type(value).__name__})")
        self._conditions[expression] = condition
