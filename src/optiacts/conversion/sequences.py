"""``Sequential`` modules in which a dropout stands behind an activation, or an activation behind a norm."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import Dropout, Identity, Module, Sequential

from optiacts._torch import known_to_compilers
from optiacts.chains import why_not_converted
from optiacts.conversion import sites
from optiacts.conversion.known import Known, is_dropout, is_identity, original, original_class, runs
from optiacts.conversion.runtime import PREFIX, helpers
from optiacts.norm_calls import norm_name, norm_name_of
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
    take = {role: names[PREFIX + role] for role in _HELPERS}
    chain = names[f"{PREFIX}chain"]

    @known_to_compilers
    def roles_of(kinds: tuple[type[Module], ...]) -> tuple[str, ...]:
        return found(kinds)

    @functools.lru_cache(maxsize=1 << 12)
    def found(kinds: tuple[type[Module], ...]) -> tuple[str, ...]:
        return _roles(steps, kinds)

    @functools.wraps(Sequential.forward)
    def forward(self: Sequential, input: Any) -> Any:
        modules, value = list(self), input
        for number, role in enumerate(roles_of(tuple(map(type, modules)))):
            if role == "":
                value = modules[number](value)
            elif role == "chain":
                value = chain(modules[number + 1], modules[number], value)
            elif role != "taken":
                value = take[role](modules[number], value)
        return value

    return forward


_HELPERS = ("call", "begin_norm", "through", "begin_dropped", "drop")


def _roles(steps: Steps, kinds: tuple[type[Module], ...]) -> tuple[str, ...]:
    """What takes the place of each module's call, of modules of these classes: a helper, or nothing.

    A ``chain`` is a norm's, whose activation is then ``taken``.
    """
    keys = {known.key for known in steps.known}
    roles: list[str] = []
    waits = False  # whether a norm may
    for number, kind in enumerate(kinds):
        behind = [runs(other, Dropout) for other in kinds[number + 1 : number + 3]] if steps.dropouts else []
        if waits and runs(kind, Identity):
            role = "through"
        elif steps.dropouts and runs(kind, Dropout):
            role, waits = "drop", False
        elif behind and behind[0]:
            role, waits = "begin_dropped", False
        elif steps.chains and norm_name_of(kind) is not None and _reached(kinds[number + 1 :], keys):
            at_once = not runs(kinds[number + 1], Identity) and not any(behind)
            role, waits = "chain" if at_once else "begin_norm", True
        elif waits:
            role, waits = "taken" if roles[-1] == "chain" else "call", False
        else:
            role = ""
        roles.append(role)
    return tuple(roles)


def _reached(behind: tuple[type[Module], ...], keys: set[Any]) -> bool:
    """Whether the first of these classes that does anything is one of ``keys``."""
    first = next((kind for kind in behind if not runs(kind, Identity)), None)
    return first is not None and original(first) in keys
