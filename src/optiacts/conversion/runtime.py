"""What a rewritten function calls in place of single expressions of the user's.

Each call decides when it runs: whatever stands there now is an activation that can keep its output, or the user's
expression is evaluated as it stands. The order of evaluation is the user's.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from optiacts import (
    curves,
    functional,
    functional_chain,
    functional_dropout,
    functional_elementwise,
    functional_gated,
)
from optiacts._torch import watched
from optiacts.backends import has_chain_kernels
from optiacts.chains import why_not_chained
from optiacts.conversion.clamps import bounds as bounds_of
from optiacts.conversion.known import (
    Activated,
    Dropping,
    Known,
    Rewritten,
    activated,
    chosen,
    dropping,
    intercepted,
    is_identity,
    overwrites,
)
from optiacts.conversion.purity import holds
from optiacts.conversion.recognition import Recognised
from optiacts.norm_calls import norm_name
from optiacts.ops import chain_scaled
from optiacts.ops import gated as gated_ops
from optiacts.ops.gated_inputs import gated_from_inputs
from optiacts.overwritten import Maker, made_by


class Pending(NamedTuple):
    """An activation that waits for the product that it is a factor of."""

    curve: str
    gate: Tensor
    version: int
    evaluate: Callable[[], Any]  # the user's own call


class PendingProduct(NamedTuple):
    """A product with a pending activation that waits for its dropout."""

    act: Pending
    up: Any
    version: int
    multiply: Callable[[Any, Any], Any]


class PendingNorm(NamedTuple):
    """A norm that waits for the activation after it. ``permutations`` are what its output is to be permuted by."""

    callee: Any
    input: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    version: int
    permutations: tuple[tuple[int, ...], ...] = ()

    def permuted(self, result: Any) -> Any:
        for order in self.permutations:
            result = result.permute(*order)
        return result


def _may_be_chained(x: Any) -> bool:
    """Whether a chain of ``x`` may be one step, as far as x tells."""
    wanted = isinstance(x, Tensor) and x.requires_grad
    return wanted and functional_chain.supports(x) and has_chain_kernels(x.device) and not intercepted()


class PendingChain(NamedTuple):
    """A norm and an activation that wait for the dropout behind them."""

    norm: PendingNorm
    callee: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


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
        if args and type(args[0]) is PendingNorm:
            return _chained(args[0], callee, args[1:], kwargs)
        found = activated(known, callee, args, kwargs)
        if found is None or _keeps_output(found):
            return chosen(rewritten, callee)(*args, **kwargs)
        return made_by(functional.apply(found.curve, found.input, found.inplace), place)

    def begin(callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        found = activated(known, callee, args, kwargs)
        if found is None or found.inplace:
            later = chosen(waiting, callee)
            return call(callee, *args, **kwargs) if later is callee else later(*args, **kwargs)
        return Pending(found.curve, found.input, _version(found.input), lambda: callee(*args, **kwargs))

    def chain(act: Any, norm: Any, x: Any, /, *args: Any, **kwargs: Any) -> Any:
        small = functional_chain.is_small(x)
        if small or _may_be_chained(x):
            result = _one_step(norm, x, args, kwargs, activated(known, act, (x,), {}, sure=small), small)
            if result is not None:
                return result
        return call(act, norm(x, *args, **kwargs))

    def begin_norm(callee: Any, x: Any, /, *args: Any, **kwargs: Any) -> Any:
        waits = (functional_chain.is_small(x) or _may_be_chained(x)) and norm_name(callee) is not None
        if not waits or (isinstance(callee, Module) and watched(callee)):
            return callee(x, *args, **kwargs)
        return PendingNorm(callee, x, args, kwargs, _version(x))

    def through(callee: Any, x: Any, /) -> Any:
        if type(x) is not PendingNorm:
            return callee(x)
        return x if is_identity(callee) and not watched(callee) else callee(_settled(x))

    def permuted(x: Any, /, *order: Any) -> Any:
        return x._replace(permutations=(*x.permutations, order)) if type(x) is PendingNorm else x.permute(*order)

    def _chained(pending: PendingNorm, callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _unmoved(pending)
        norm, x, small = pending.callee, pending.input, functional_chain.is_small(pending.input)
        found = activated(known, callee, (x, *args), kwargs, sure=small)
        result = _one_step(norm, x, pending.args, pending.kwargs, found, small)
        return call(callee, _settled(pending), *args, **kwargs) if result is None else pending.permuted(result)

    def _one_step(
        norm: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], act: Activated | None, small: bool
    ) -> Any:
        if act is None or why_not_chained(act.curve):
            return None
        result = functional_chain.chained_or_none(norm, x, args, kwargs, act.curve, wanted=False, small=small)
        return None if result is None else made_by(result, place)

    def _settled(pending: PendingNorm) -> Any:
        _unmoved(pending)
        return pending.permuted(pending.callee(pending.input, *pending.args, **pending.kwargs))

    def _unmoved(pending: PendingNorm) -> None:
        if _version(pending.input) != pending.version:
            raise RuntimeError(_changed("the input of the norm", place))

    def begin_dropped(callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        if args and type(args[0]) is PendingNorm:
            return PendingChain(args[0], callee, args[1:], kwargs)
        found = activated(known, callee, args, kwargs)
        if found is not None and found.inplace:  # its output is what the dropout may overwrite
            return callee(*args, **kwargs)
        return begin(callee, *args, **kwargs)

    def clamp(callee: Any, x: Any, /, *args: Any, **kwargs: Any) -> Any:
        bounds = bounds_of(callee, args, kwargs)
        if bounds is None or not isinstance(x, Tensor) or not functional.saves_memory(x) or intercepted():
            return callee(x, *args, **kwargs)
        return functional_elementwise.clamp(x, **bounds)

    def clamp_method(x: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        bounds = bounds_of(name, args, kwargs)
        if bounds is None or not isinstance(x, Tensor) or not functional.saves_memory(x) or intercepted():
            return getattr(x, name)(*args, **kwargs)
        return functional_elementwise.clamp(x, **bounds)

    def glu(callee: Any, x: Any, /, *args: Any, **kwargs: Any) -> Any:
        if callee is not torch.nn.functional.glu or not isinstance(x, Tensor) or intercepted():
            return callee(x, *args, **kwargs)
        return made_by(functional_gated.glu(x, *args, **kwargs), place)

    def pure(number: int, x: Any, owner: Any, numbers: tuple[Any, ...]) -> Recognised | None:
        recognised = written[number]
        if not isinstance(x, Tensor) or not functional.saves_memory(x) or intercepted():
            return None
        if torch.compiler.is_compiling() and not recognised.traceable:
            return None
        if not holds(recognised.pins, owner):
            return None
        for now, (_, then) in zip(numbers, recognised.numbers, strict=True):
            if type(now) is not type(then) or now != then:
                return None
        return None if functional.compiles_autocast(curves.get(recognised.curve), x) else recognised

    def evaluate(number: int, expression: Callable[[Any], Any], x: Any, owner: Any = None, *numbers: Any) -> Any:
        recognised = pure(number, x, owner, numbers)
        if recognised is None:
            return expression(x)
        return made_by(functional.apply(recognised.curve, x), place)

    def begin_evaluate(
        number: int, expression: Callable[[Any], Any], x: Any, owner: Any = None, *numbers: Any
    ) -> Any:
        recognised = pure(number, x, owner, numbers)
        if recognised is None:
            return expression(x)
        return Pending(recognised.curve, x, _version(x), lambda: expression(x))

    def product_into(act: Any, up: Any) -> Any:
        if type(act) is not Pending:
            act *= up
            return act
        result = _product(act, up, operator.mul, place)
        if isinstance(result, Tensor) and (result.dtype, result.shape) == (act.gate.dtype, act.gate.shape):
            return result  # the values of the product in place, and backward keeps its factor
        value = curves.get(act.curve).forward(act.gate)
        value *= up
        return value

    def drop(callee: Any, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        how = dropping(callee, args, kwargs)
        if type(value) is PendingChain:
            if how is None or how.inplace:  # the chain's output must not be overwritten
                value = begin_dropped(value.callee, _settled(value.norm), *value.args, **value.kwargs)
            else:
                value = _chained(value.norm, value.callee, value.args, value.kwargs)
        if type(value) is Pending or type(value) is PendingProduct:
            if how is not None:
                dropped = _dropped(value, how, place)
                if dropped is not None:
                    return dropped
            value = _finished(value, place, theirs=overwrites(callee, args, kwargs))
        if how is None or isinstance(callee, Module):
            return callee(value, *args, **kwargs)
        return functional_dropout.dropout(value, *how)

    def class_of(value: Any) -> type:
        """The class that the user knows ``value`` by."""
        kind = type(value)
        return getattr(kind, "optiacts_original", kind)

    found = locals()
    found |= _products(functools.partial(_product, place=place), product_into)
    found |= {
        f"unkept_{name}": form
        for name, form in _products(functools.partial(_product, place=place, kept=False), product_into).items()
    }
    found |= {f"later_{name}": form for name, form in _products(_later, product_into).items()}
    return {PREFIX + name: found[name] for name in NAMES}


PREFIX = "_optiacts_"
NAMES = (
    "call",
    "begin",
    "begin_dropped",
    "begin_norm",
    "chain",
    "through",
    "permuted",
    "evaluate",
    "begin_evaluate",
    "clamp",
    "clamp_method",
    "glu",
    "product",
    "product_right",
    "product_by",
    "product_method",
    "unkept_product",
    "unkept_product_right",
    "unkept_product_by",
    "unkept_product_method",
    "later_product",
    "later_product_right",
    "later_product_by",
    "later_product_method",
    "product_into",
    "drop",
    "class_of",
)


def _products(form: Callable[..., Any], into: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """The ways to write a product. ``form(act, up, multiply)`` gives that of a pending activation."""

    def product(act: Any, up: Any) -> Any:
        return form(act, up, operator.mul) if type(act) is Pending else act * up

    def product_right(up: Any, act: Any) -> Any:
        return form(act, up, _swapped) if type(act) is Pending else up * act

    def product_by(function: Callable[..., Any], first: Any, second: Any) -> Any:
        if type(first) is Pending:
            return form(first, second, function)
        if type(second) is Pending:
            return form(second, first, lambda act, up: function(up, act))
        return function(first, second)

    def product_method(act: Any, name: str, up: Any) -> Any:
        if type(up) is Pending and type(act) is not Pending:
            return form(up, act, lambda value, factor: getattr(factor, name)(value))
        if type(act) is not Pending:
            return getattr(act, name)(up)
        if name == "mul_":
            return into(act, up)
        return form(act, up, lambda value, factor: getattr(value, name)(factor))

    return {f.__name__: f for f in (product, product_right, product_by, product_method)}


def _version(x: Tensor) -> int:
    """How often ``x`` was changed in place; compilers keep track of that themselves."""
    return 0 if torch.compiler.is_compiling() else x._version


def _product(act: Pending, up: Any, multiply: Callable[[Any, Any], Any], place: Maker, kept: bool = True) -> Any:
    """The gated product; where ``up`` does not fit, our activation and the user's product.

    ``kept``: whether somebody else keeps the product.
    """
    _unchanged(act, place)
    if kept and isinstance(up, Tensor) and not torch.compiler.is_compiling():
        found = functional_gated.plain_gated(act.gate, up, act.curve)
        if found is not None:
            return made_by(found[0], place)
    if _fits(act, up):  # what functional_gated.gated asks of the gate was asked when the activation was begun
        if not kept and functional_gated.keeps_inputs(act.gate):
            return gated_from_inputs(act.gate, up, act.curve)
        return made_by(gated_ops.gated(act.gate, up, act.curve), place)
    gate = _finished(act, place)
    product = chain_scaled.scaled(up, gate) if act.curve == "sigmoid" and isinstance(up, Tensor) else None
    return multiply(gate, up) if product is None else made_by(product, place)


def _later(act: Pending, up: Any, multiply: Callable[[Any, Any], Any]) -> PendingProduct:
    return PendingProduct(act, up, _version(up) if isinstance(up, Tensor) else 0, multiply)


def _fits(act: Pending, up: Any) -> bool:
    return isinstance(up, Tensor) and functional_gated.matches(up, act.gate)


def _unchanged(act: Pending | PendingProduct, place: Maker) -> None:
    factor = act.gate if isinstance(act, Pending) else act.up
    if isinstance(factor, Tensor) and _version(factor) != act.version:
        raise RuntimeError(_changed("the input of the activation", place))


def _changed(what: str, place: Maker) -> str:
    return (
        f"optiacts: {what} was changed in place before its output was used, in {place.optiacts_described()}. "
        "Leave the module alone: optiacts.convert(model, exclude=...)."
    )


def _dropped(value: Pending | PendingProduct, how: Dropping, place: Maker) -> Any:
    """The dropout of what is pending, as one step; None where that cannot be."""
    act = value if isinstance(value, Pending) else value.act
    _unchanged(act, place)
    _unchanged(value, place)
    if not functional_dropout.drops(act.gate, how.p, how.training):
        return None
    if isinstance(value, PendingProduct):
        if not _fits(act, value.up):
            return None
        return made_by(functional_dropout.gated_dropout(act.gate, value.up, act.curve, *how), place)
    if not functional_dropout.survives_dropout(act.curve):
        return None
    return made_by(functional_dropout.activation_dropout(act.gate, act.curve, *how), place)


def _finished(value: Pending | PendingProduct, place: Maker, theirs: bool = False) -> Any:
    """What is pending, evaluated; ``theirs``: by PyTorch alone, so that its result may be overwritten."""
    _unchanged(value, place)
    if isinstance(value, PendingProduct):
        if theirs:
            return value.multiply(_finished(value.act, place, theirs), value.up)
        return _product(value.act, value.up, value.multiply, place)
    if theirs:
        return curves.get(value.curve).forward(value.gate)
    if curves.get(value.curve).keeps_output:
        return value.evaluate()
    return made_by(functional.apply(value.curve, value.gate), place)


def _keeps_output(found: Activated) -> bool:
    """Whether PyTorch's own op keeps its output, so that there is nothing to save."""
    curve = curves.get(found.curve)
    return curve.keeps_output or (found.inplace and curve.inplace_keeps_output)


def _swapped(act: Any, up: Any) -> Any:
    return up * act
