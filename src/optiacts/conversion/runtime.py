"""What a rewritten function calls in place of single expressions of the user's.

Each call decides when it runs: whatever stands there now is an activation that can keep its output, or the user's
expression is evaluated as it stands. The order of evaluation is the user's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optiacts import curves, functional, functional_gated
from optiacts.conversion.known import Known, Rewritten, activated, chosen, intercepted
from optiacts.conversion.purity import holds
from optiacts.conversion.recognition import Recognised
from optiacts.ops import gated as gated_ops
from optiacts.overwritten import Maker, made_by


class Pending(NamedTuple):
    """An activation that waits for the product that it is a factor of."""

    curve: str
    gate: Tensor
    version: int
    evaluate: Callable[[], Any]  # the user's own call


def helpers(
    known: tuple[Known, ...],
    rewritten: tuple[Rewritten, ...],
    waiting: tuple[Rewritten, ...],
    written: tuple[Recognised, ...],
    place: Maker,
) -> dict[str, Any]:
    """The names that a rewritten function uses. They are closures, so that compilers see constants.

    Args:
        known: the callables that the function may call as activations.
        rewritten: other functions that it may call.
        waiting: functions that return an activation's output, to be left to the product.
        written: the activations that it writes out as expressions, by number.
        place: describes the function in error messages.
    """

    def call(callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        found = activated(known, callee, args, kwargs)
        if found is None or curves.get(found.curve).keeps_output:
            return chosen(rewritten, callee)(*args, **kwargs)
        return made_by(functional.apply(found.curve, found.input, found.inplace), place)

    def begin(callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        found = activated(known, callee, args, kwargs)
        if found is None or found.inplace:
            later = chosen(waiting, callee)
            return call(callee, *args, **kwargs) if later is callee else later(*args, **kwargs)
        return Pending(found.curve, found.input, _version(found.input), lambda: callee(*args, **kwargs))

    def pure(number: int, x: Any, owner: Any) -> Recognised | None:
        recognised = written[number]
        if not isinstance(x, Tensor) or not functional.saves_memory(x) or intercepted():
            return None
        if torch.compiler.is_compiling() and not recognised.traceable:
            return None
        if not holds(recognised.pins, owner):
            return None
        return None if functional.compiles_autocast(curves.get(recognised.curve), x) else recognised

    def evaluate(number: int, expression: Callable[[Any], Any], x: Any, owner: Any = None) -> Any:
        recognised = pure(number, x, owner)
        if recognised is None:
            return expression(x)
        return made_by(functional.apply(recognised.curve, x), place)

    def begin_evaluate(number: int, expression: Callable[[Any], Any], x: Any, owner: Any = None) -> Any:
        recognised = pure(number, x, owner)
        if recognised is None:
            return expression(x)
        return Pending(recognised.curve, x, _version(x), lambda: expression(x))

    def product(act: Any, up: Any) -> Any:
        return _product(act, up, place, operator.mul) if type(act) is Pending else act * up

    def product_right(up: Any, act: Any) -> Any:
        return _product(act, up, place, _swapped) if type(act) is Pending else up * act

    def product_into(act: Any, up: Any) -> Any:
        if type(act) is not Pending:
            act *= up
            return act
        result = _product(act, up, place, operator.mul)
        if isinstance(result, Tensor) and (result.dtype, result.shape) == (act.gate.dtype, act.gate.shape):
            return result  # the values of the product in place, and backward keeps its factor
        value = curves.get(act.curve).forward(act.gate)
        value *= up
        return value

    def product_by(function: Callable[..., Any], first: Any, second: Any) -> Any:
        if type(first) is Pending:
            return _product(first, second, place, function)
        if type(second) is Pending:
            return _product(second, first, place, lambda act, up: function(up, act))
        return function(first, second)

    def product_method(act: Any, name: str, up: Any) -> Any:
        if type(up) is Pending and type(act) is not Pending:
            return _product(up, act, place, lambda value, factor: getattr(factor, name)(value))
        if type(act) is not Pending:
            return getattr(act, name)(up)
        if name == "mul_":
            return product_into(act, up)
        return _product(act, up, place, lambda value, factor: getattr(value, name)(factor))

    def class_of(value: Any) -> type:
        """The class that the user knows ``value`` by."""
        kind = type(value)
        return getattr(kind, "optiacts_original", kind)

    found = locals()
    return {PREFIX + name: found[name] for name in NAMES}


PREFIX = "_optiacts_"
NAMES = (
    "call",
    "begin",
    "evaluate",
    "begin_evaluate",
    "product",
    "product_right",
    "product_into",
    "product_by",
    "product_method",
    "class_of",
)


def _version(x: Tensor) -> int:
    """How often ``x`` was changed in place; compilers keep track of that themselves."""
    return 0 if torch.compiler.is_compiling() else x._version


def _product(act: Pending, up: Any, place: Maker, multiply: Callable[[Any, Any], Any]) -> Any:
    """The gated product; where ``up`` does not fit, our activation and the user's product."""
    fused = _fused(act, up, place)
    if fused is not None:
        return fused
    if curves.get(act.curve).keeps_output:
        return multiply(act.evaluate(), up)
    return multiply(made_by(functional.apply(act.curve, act.gate), place), up)


def _fused(act: Pending, up: Any, place: Maker) -> Tensor | None:
    if _version(act.gate) != act.version:
        raise RuntimeError(
            "optiacts: the input of the activation was changed in place before its product was formed, in "
            f"{place.optiacts_described()}. Leave the module alone: optiacts.convert(model, exclude=...)."
        )
    if not isinstance(up, Tensor) or not functional_gated.matches(up, act.gate):
        return None
    # what functional_gated.gated asks of the gate was asked when the activation was begun
    return made_by(gated_ops.gated(act.gate, up, act.curve), place)


def _swapped(act: Any, up: Any) -> Any:
    return up * act
