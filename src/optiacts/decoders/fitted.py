"""The generated coefficients of a curve: read from data/NAME.json, or brought along by a curve of run time."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from optiacts.curves import Curve, CurveError, Unimodal, get
from optiacts.decoders.scaling import scaled

T = TypeVar("T")
FOLDER = Path(__file__).with_name("data")


def fitted(curve: Curve, *part: str) -> Mapping[str, Any]:
    """The coefficients of ``curve`` under the keys ``part``; lists are tuples.

    Raises:
        CurveError: there are none; the message says how to make them.
    """
    node = _of(curve.base or curve.name)
    for key in part:
        if key not in node:
            raise CurveError(
                f"{curve.name} has no coefficients for {' '.join(part)}: `make fit ONLY={curve.base or curve.name}` "
                "makes those of a curve in this package, optiacts.decoders.fitting.fit(curve) those of any other"
            )
        node = node[key]
    return node


def remembered(make: Callable[..., T]) -> Callable[..., T]:
    """Caches ``make(curve, ...)``, once for all curves with the same mathematics."""

    @functools.cache
    def made(name: str, *args: Any) -> T:
        return make(get(name), *args)

    @functools.wraps(make)
    def of(curve: Curve, *args: Any) -> T:
        return made(curve.base or curve.name, *args)

    return of


@functools.cache
def _of(name: str) -> Mapping[str, Any]:
    decoder, file = get(name).decoder, FOLDER / f"{name}.json"
    if isinstance(decoder, Unimodal) and decoder.scaled is not None:
        origin, k = decoder.scaled
        return _of(origin) if k == 1 else _frozen(scaled(_of(origin), k, get(name).y_min))
    if isinstance(decoder, Unimodal) and decoder.fitted is not None:
        return _frozen(decoder.fitted)
    return _frozen(json.loads(file.read_text())) if file.exists() else {}


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
