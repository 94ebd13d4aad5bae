"""PyTorch's own functions that compute a curve: those that the curves name, and the other names of their ops.

Compilers trace this, too: plain comparisons, which they turn into guards.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from optiacts import curves
from optiacts._torch import functions_of_op, op_defaults


class TorchFunction(NamedTuple):
    """A function of PyTorch; which curve it computes hangs on some of its options.

    If it computes the members of a ``family``, the defaults are those of the family's parameters, in their order.
    """

    function: Callable[..., Any]
    ways: tuple[tuple[Mapping[str, Any], str], ...]  # the options, the curve
    defaults: Mapping[str, Any]  # of these options
    inplace: bool  # whether it takes ``inplace``
    family: str | None = None

    def curve(self, options: Mapping[str, Any]) -> str | None:
        """The curve that it computes with ``options``."""
        if self.family is not None:
            return curves.member(self.family, **{**self.defaults, **_constants(options)}) if options else self.family
        for wanted, name in self.ways:
            fits = True
            for option, value in wanted.items():
                fits = fits and options.get(option, self.defaults.get(option)) == value
            if fits:
                return name
        return None


def _constants(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """``options``; of numbers that a compiler has made symbols of, their values: elements of a set it must tell."""
    if not torch.compiler.is_compiling():
        return options
    return {name: next(iter({value})) if isinstance(value, float) else value for name, value in options.items()}


def torch_curve(function: Any, options: Mapping[str, Any] | None = None) -> str | None:
    """The curve that one of PyTorch's own functions computes, of its options by default; None for anything else.

    Of a family, the one with the default values.
    """
    for known in FUNCTIONS:
        if known.function is function:
            return known.family or known.curve(options or {})
    return None


def _functions() -> tuple[TorchFunction, ...]:
    ways: dict[Callable[..., Any], list[tuple[Mapping[str, Any], str]]] = {}
    defaults: dict[Callable[..., Any], dict[str, Any]] = {}
    for name, curve in curves.GATES.items():
        spellings = [spelling for spelling in curve.functions if spelling.path.startswith("torch.")]
        for spelling in spellings:
            named = _called(spelling.path)
            for function in dict.fromkeys((named, *(f for op in curve.ops for f in functions_of_op(op)))):
                known = ways.setdefault(function, [])
                if name not in (other for _, other in known):
                    known.append((spelling.where, name))
                given = {option: value for op in curve.ops for option, value in op_defaults(op).items()}
                defaults.setdefault(function, {}).update({k: given[k] for k in spelling.where if k in given})
    single = [
        TorchFunction(function, tuple(known), defaults[function], _takes_inplace(function))
        for function, known in ways.items()
    ]
    families = [
        TorchFunction(function, (), _numbers(family), _takes_inplace(function), name)
        for name, family in curves.FAMILIES.items()
        for function in map(_called, family.functions)
    ]
    return (*single, *families)


def _called(path: str) -> Callable[..., Any]:
    return operator.attrgetter(path.removeprefix("torch."))(torch)


def _numbers(family: curves.Family) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(family.make).parameters.values()}


def _takes_inplace(function: Callable[..., Any]) -> bool:
    try:
        return "inplace" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # C functions have no signature
        return False


FUNCTIONS = _functions()
