"""Every curve by its name, and every table that follows from the curves. Nothing else names them.

The modules of this package without an underscore are found by themselves: one has a ``CURVE`` or a ``FAMILY``. More
can be registered at run time, from any thread.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import Tensor

from optiacts._torch import known_to_compilers
from optiacts.curves._check import check, check_fitted
from optiacts.curves._curve import Curve, CurveError, Family, Spelling, Unimodal
from optiacts.curves._variant import variant_of

CURVES: dict[str, Curve] = {}
"""The curves whose output is kept in place of the input."""
VARIANTS: dict[str, Curve] = {}
"""Those with a forward of their own and the mathematics of another curve."""
GATES: dict[str, Curve] = {}
"""All: those above, and those that are of use in gated products only. Members of families are made when needed."""

FAMILIES: dict[str, Family] = {}
"""What curves with parameters are made by."""

_members: dict[str, Curve] = {}  # that were asked for, by canonical name
_lock = threading.RLock()  # a family may register, too


def get(name: str) -> Curve:
    """The curve called ``name``, such as ``"gelu"`` or ``"elu(alpha=0.3)"``.

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
    """
    return GATES[name] if name in GATES else _of_family(name)


def register(curve: Curve) -> Curve:
    """Makes ``curve`` known under its name, in this process.

    Its mathematics is checked first, numerically: that the derivatives are those of the function, and that the
    curve has the shape that its decoder needs. Registering the same curve again does nothing.

    Raises:
        CurveError: the curve is not what it says, or another one has the name.
    """
    with _lock:
        if GATES.get(curve.name) is not curve:
            _refuse_taken(curve.name)
            check(curve)
            check_fitted(curve)
            _add(curve)
    return curve


def variant(base: str, name: str, forward: Callable[[Tensor], Tensor]) -> Curve:
    """Makes known, as ``name``, the mathematics of the curve called ``base`` with ``forward`` as its forward.

    ``forward`` is not run here: that it computes ``base`` is the caller's knowledge. Where ``name`` is such a
    variant already, that one is returned; so equal names must stand for equal forwards.

    Raises:
        CurveError: there is no ``base``, or ``name`` means something else already.
    """
    with _lock:
        made = variant_of(get(base), name, forward)
        known = VARIANTS.get(name)
        if known is not None and known.base == made.base:
            return known
        _refuse_taken(name)
        _add(made)
    return made


def register_family(name: str, family: Family | Callable[..., Curve]) -> None:
    """Makes known the curves ``"name(key=value, ...)"``: ``family`` takes the values and returns the curve.

    The curve is made when it is first asked for, and its name is the canonical one: all parameters, in their
    order, so that one curve has one name. ``"name"`` alone is the curve with the default values.
    """
    family = family if isinstance(family, Family) else Family(family)
    with _lock:
        if FAMILIES.get(name) != family:
            _refuse_taken(name)
            FAMILIES[name] = family


@known_to_compilers
def member(name: str, **values: float) -> str | None:
    """The name of the curve of the family ``name`` with these values; None if it is none that we can serve."""
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values.values()):
        return None
    return _member(name, tuple(values.items()))


@functools.lru_cache(maxsize=4096)
def _member(name: str, values: tuple[tuple[str, float], ...]) -> str | None:
    try:
        return get(canonical(name, FAMILIES[name], dict(values))).name
    except CurveError:
        return None


def every_name() -> list[str]:
    """The names of ``CURVES`` and, of each family, of the member with the default values."""
    return [*CURVES, *(get(name).name for name in FAMILIES)]


def unimodal() -> dict[str, Curve]:
    """Those of ``CURVES`` that are read with generated coefficients of their own."""
    return {
        name: curve
        for name, curve in CURVES.items()
        if isinstance(curve.decoder, Unimodal) and curve.decoder.scaled is None
    }


def spellings(kind: Literal["modules", "functions"]) -> dict[str, list[tuple[Spelling, str]]]:
    """For the dotted name of each class or function that computes a curve: with which arguments, which curve."""
    found: dict[str, list[tuple[Spelling, str]]] = {}
    for curve in _all():
        for spelling in getattr(curve, kind):
            found.setdefault(spelling.path, []).append((spelling, curve.name))
    return found


def input_keeping_ops() -> frozenset[str]:
    """The aten ops of the curves that hold their input for backward."""
    curves = frozenset(op for curve in _all() if not curve.keeps_output for op in curve.ops)
    return curves.union(*(family.ops for family in FAMILIES.values()))


def canonical(name: str, family: Family, values: dict[str, Any]) -> str:
    """The one name of the curve of a family with these values."""
    bound = inspect.signature(family.make).bind(**values)
    bound.apply_defaults()
    numbers = {key: float(v) if type(v) is int else v for key, v in bound.arguments.items()}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in numbers.items())})"


@known_to_compilers
def _of_family(name: str) -> Curve:
    return _member_called(name)


@functools.lru_cache(maxsize=4096)  # a name means one curve for ever
def _member_called(name: str) -> Curve:
    with _lock:
        family, values = _parsed(name)
        stem = name.partition("(")[0]
        try:
            full = canonical(stem, family, values)
        except TypeError as error:
            raise CurveError(f"{name}: {error}; {stem} takes {inspect.signature(family.make)}") from None
        if full not in _members:
            curve = dataclasses.replace(family.make(**values), name=full)
            check(curve)
            check_fitted(curve)
            _members[full] = curve
        return _members[full]


def _parsed(name: str) -> tuple[Family, dict[str, Any]]:
    """The family that ``name`` belongs to, and the values in it, which must be literals."""
    try:
        call = ast.parse(name, mode="eval").body
        values: dict[str, Any] = {}
        if isinstance(call, ast.Call) and not call.args:
            values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            call = call.func
        if isinstance(call, ast.Name) and call.id in FAMILIES:
            return FAMILIES[call.id], values
    except (SyntaxError, ValueError):
        pass
    known = (name for name in (*GATES, *FAMILIES) if name not in VARIANTS)  # those are not for people to name
    raise CurveError(f"curve must be one of {', '.join(known)}; got {name!r}")


def _refuse_taken(name: str) -> None:
    if name in GATES or name in FAMILIES:
        raise CurveError(f"there is another curve called {name!r} already")


def _add(curve: Curve) -> None:
    if curve.base is not None:
        VARIANTS[curve.name] = curve
    elif not curve.keeps_output:
        CURVES[curve.name] = curve
    GATES[curve.name] = curve


def _all() -> Iterable[Curve]:
    return (*tuple(GATES.values()), *tuple(_members.values()))  # another thread may register one meanwhile


def discover(package: str, path: Iterable[str]) -> None:
    """Registers what the modules of ``package`` define. They are checked by a test."""
    for found in pkgutil.iter_modules(path):
        if not found.name.startswith("_"):
            module = importlib.import_module(f"{package}.{found.name}")
            if hasattr(module, "CURVE"):
                _add(module.CURVE)
            else:
                register_family(found.name, module.FAMILY)
