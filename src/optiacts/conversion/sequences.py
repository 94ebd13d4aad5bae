"""``Sequential`` modules in which a dropout stands behind an activation, or an activation behind a norm."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import Module, Sequential

from optiacts.chains import why_not_converted
from optiacts.conversion import sites
from optiacts.conversion.known import Known, is_dropout, is_identity, original_class
from optiacts.conversion.runtime import PREFIX, PendingNorm, helpers
from optiacts.norm_calls import norm_name
from optiacts.overwritten import Maker


class Steps(NamedTuple):
    """What becomes one step in a ``Sequential``: the activations, and with what."""

    known: tuple[Known, ...]
    dropouts: bool
    chains: bool


def pairs_in(module: Module) -> list[tuple[Module, Module]]:
    """The activations with the dropouts behind them; none for what is no plain ``Sequential``."""
    return [(first, second) for first, second in itertools.pairwise(_children(module)) if is_taken(first, second)]


def chains_in(module: Module) -> list[tuple[Module, Module]]:
    """The norms with the activations behind them, modules that return their input left out of account.

    None for what is no plain ``Sequential``.
    """
    children = [child for child in _children(module) if not is_identity(child)]
    return [(first, second) for first, second in itertools.pairwise(children) if is_chain(first, second)]


def _children(module: Module) -> list[Module]:
    """What a plain ``Sequential`` runs one after the other."""
    if not isinstance(module, Sequential) or original_class(module).forward is not Sequential.forward:
        return []
    return [] if "forward" in module.__dict__ else list(module)


def is_taken(first: Module, second: Module) -> bool:
    """Whether ``second`` is a dropout that can take what the activation ``first`` makes, in a tensor of its own."""
    recognised = sites.activation(first) if is_dropout(second) else None
    return recognised is not None and not recognised.inplace


def is_chain(first: Module, second: Module) -> bool:
    """Whether ``first`` is a norm and ``second`` an activation that can be one step with it."""
    norm = norm_name(first)
    recognised = sites.activation(second) if norm is not None else None
    dtype = next((parameter.dtype for parameter in first.parameters(recurse=False)), torch.float32)
    return recognised is not None and not why_not_converted(str(norm), recognised.curve, dtype)


def steps_in(module: Module, dropouts: bool, chains: bool) -> Steps:
    """The activations of one step with others, as they are recognised again when they are called."""
    acts = [act for act, _ in pairs_in(module)] if dropouts else []
    acts += [act for _, act in chains_in(module)] if chains else []
    found: list[Known] = []
    for act in acts:
        recognised = sites.activation(act)
        if recognised is not None:
            known = Known(original_class(act), recognised)
            found += [] if known in found else [known]
    return Steps(tuple(found), dropouts, chains)


def forward_of(steps: Steps, place: Maker) -> Callable[..., Any]:
    """The forward of a ``Sequential`` in which norms wait for their activations, and these for their dropouts."""
    names = helpers(steps.known, (), (), (), place)
    call, begin_norm, through = (names[PREFIX + name] for name in ("call", "begin_norm", "through"))
    begin, drop = names[f"{PREFIX}begin_dropped"], names[f"{PREFIX}drop"]

    keys = {known.key for known in steps.known}

    def reaches(behind: list[Module]) -> bool:
        for module in behind:
            if not is_identity(module):
                return original_class(module) in keys
        return False

    @functools.wraps(Sequential.forward)
    def forward(self: Sequential, input: Any) -> Any:
        modules, value = list(self), input
        for number, module in enumerate(modules):
            following = modules[number + 1] if number + 1 < len(modules) else None
            if type(value) is PendingNorm and is_identity(module):
                value = through(module, value)
            elif steps.dropouts and is_dropout(module):
                value = drop(module, value)
            elif steps.dropouts and following is not None and is_dropout(following):
                value = begin(module, value)
            elif steps.chains and reaches(modules[number + 1 :]) and norm_name(module) is not None:
                value = begin_norm(module, value)
            elif type(value) is PendingNorm:
                value = call(module, value)
            else:
                value = module(value)
        return value

    return forward
