"""Which modules are being called, and inside which of them each node of the autograd graph was made."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from optiacts._torch import current_node_number, looking_on, next_node_number
from optiacts.held.activations import CurveOf


class Call(NamedTuple):
    """One call of a module: a number of its own, the module's path in the model, its class, its curve if any."""

    number: int
    path: str
    layer: str
    curve: str | None = None

    def __str__(self) -> str:
        return f"{self.path or 'the model'} ({self.layer})"


Where = tuple[Call, ...]  # the calls that were open, outermost first


def describe(where: Where) -> str:
    """The innermost layer, as people read it."""
    return str(where[-1]) if where else "the function itself"


class Calls:
    """Follows which modules are being called, by hooks on all modules while ``followed`` is entered.

    ``left``: called with the arguments and the output of a call that ends, while it is open still.
    """

    def __init__(self, model: Any, curve_of: CurveOf = lambda module: None) -> None:
        named = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else {}
        self._curve_of = curve_of
        self._known = {id(m): (path, type(m).__name__, curve_of(m)) for path, m in named.items()}  # none in a forward
        self._stack: list[Call] = []
        self._numbers = itertools.count()
        self._nodes: list[int] = [0]  # of graph nodes: from each on, they are made in the calls beside it
        self._inside: list[Where] = [()]
        self.left: Callable[[Any, Any], None] | None = None

    def where(self) -> Where:
        """The calls that are open."""
        return tuple(self._stack)

    def where_made(self, node: int) -> Where:
        """The calls that were open when the graph node of that number was made."""
        return self._inside[bisect.bisect_right(self._nodes, node) - 1]

    def here(self) -> Where:
        """The calls that are open; in backward those in which the op was called that is differentiated."""
        number = current_node_number()
        return self.where() if self._stack or number is None else self.where_made(number)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Of this thread: others run modules of their own meanwhile."""
        thread = threading.get_ident()

        def enter(module: torch.nn.Module, args: Any) -> None:
            if threading.get_ident() == thread:
                known = self._known.get(id(module))
                if known is None:  # of no part of the model
                    layer = type(module).__name__
                    known = layer, layer, self._curve_of(module)
                self._stack.append(Call(next(self._numbers), *known))
                self._note()

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread and self._stack:
                if self.left is not None:
                    self.left(args, output)
                self._stack.pop()
                self._note()

        before = register_module_forward_pre_hook(looking_on(enter))
        after = register_module_forward_hook(looking_on(leave), always_call=True)  # recomputations stop by raising
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _note(self) -> None:
        if current_node_number() is None:  # a recomputation's nodes come from within backward: the stack tells
            self._nodes.append(next_node_number())
            self._inside.append(self.where())
