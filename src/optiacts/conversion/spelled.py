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
    """A function of PyTorch; which curve it computes hangs on some of its options."""

    function: Callable[..., Any]
    ways: tuple[tuple[Mapping[str, Any], str], ...]  # the options, the curve
    defaults: Mapping[str, Any]  # of these options
    inplace: bool  # whether it takes ``inplace``

    def curve(self, options: Mapping[str, Any]) -> str | None:
        """The curve that it computes with ``options``."""
        for wanted, name in self.ways:
            fits = True
            for option, value in wanted.items():
                fits = fits and options.get(option, self.defaults.get(option)) == value
            if fits:
                return name
        return None


def torch_curve(function: Any, options: Mapping[str, Any] | None = None) -> str | None:
    """The curve that one of PyTorch's own functions computes, of its options by default; None for anything else."""
    for known in FUNCTIONS:
        if known.function is function:
            return known.curve(options or {})
    return None


def _functions() -> tuple[TorchFunction, ...]:
    ways: dict[Callable[..., Any], list[tuple[Mapping[str, Any], str]]] = {}
    defaults: dict[Callable[..., Any], dict[str, Any]] = {}
    for name, curve in curves.GATES.items():
        spellings = [spelling for spelling in curve.functions if spelling.path.startswith("torch.")]
        for spelling in spellings:
            named = operator.attrgetter(spelling.path.removeprefix("torch."))(torch)
            for function in dict.fromkeys((named, *(f for op in curve.ops for f in functions_of_op(op)))):
                known = ways.setdefault(function, [])
                if name not in (other for _, other in known):
                    known.append((spelling.where, name))
                given = {option: value for op in curve.ops for option, value in op_defaults(op).items()}
                defaults.setdefault(function, {}).update({k: given[k] for k in spelling.where if k in given})
    return tuple(
        TorchFunction(function, tuple(known), defaults[function], _takes_inplace(function))
        for function, known in ways.items()
    )


def _takes_inplace(function: Callable[..., Any]) -> bool:
    try:
        return "inplace" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # C functions have no signature
        return False


FUNCTIONS = _functions()
