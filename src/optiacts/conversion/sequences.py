"""``Sequential`` modules in which a dropout stands right behind an activation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from torch.nn import Module, Sequential

from optiacts.conversion import sites
from optiacts.conversion.known import Known, is_dropout, original_class
from optiacts.conversion.runtime import PREFIX, helpers
from optiacts.overwritten import Maker


def pairs_in(module: Module) -> list[tuple[Module, Module]]:
    """The activations with the dropouts behind them; none for what is no plain ``Sequential``."""
    if not isinstance(module, Sequential) or original_class(module).forward is not Sequential.forward:
        return []
    if "forward" in module.__dict__:
        return []
    return [(first, second) for first, second in itertools.pairwise(module) if is_taken(first, second)]


def is_taken(first: Module, second: Module) -> bool:
    """Whether ``second`` is a dropout that can take what the activation ``first`` makes, in a tensor of its own."""
    recognised = sites.activation(first) if is_dropout(second) else None
    return recognised is not None and not recognised.inplace


def taken_in(module: Module) -> tuple[Known, ...]:
    """The activations that dropouts take, as they are recognised again when they are called."""
    found: list[Known] = []
    for act, _ in pairs_in(module):
        recognised = sites.activation(act)
        if recognised is not None:
            known = Known(original_class(act), recognised)
            found += [] if known in found else [known]
    return tuple(found)


def forward_of(known: tuple[Known, ...], place: Maker) -> Callable[..., Any]:
    """The forward of a ``Sequential`` in which the activations ``known`` wait for their dropouts."""
    names = helpers(known, (), (), (), place)
    begin, drop = names[f"{PREFIX}begin_dropped"], names[f"{PREFIX}drop"]

    @functools.wraps(Sequential.forward)
    def forward(self: Sequential, input: Any) -> Any:
        modules, value = list(self), input
        for number, module in enumerate(modules):
            if is_dropout(module):
                value = drop(module, value)
            elif number + 1 < len(modules) and is_dropout(modules[number + 1]):
                value = begin(module, value)
            else:
                value = module(value)
        return value

    return forward
