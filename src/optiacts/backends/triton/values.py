"""The forwards, operation by operation as PyTorch's GPU kernels evaluate them, so that the results are equal.

Each curve brings its own, as an expression in ``z``: the tile ``x`` of inputs, in float32. The result is rounded to
the dtype of x at the end; a curve that is several PyTorch operations says ``rounded(..., x)`` after each of them. A
Python number beside a tile becomes a float32 constant; where a function needs a tile, ``like(z, number)`` is one.
Products and sums that PyTorch's compiler contracts to one fused operation are written as ``fma`` here, and the
compiler is told to contract no others (see ``launch.forward_constants``).
"""

from __future__ import annotations

import functools
from typing import Any

from optiacts.backends.triton.decode import clamp
from optiacts.backends.triton.elementary import divide, erf, exp, fma, like, log1p, rounded, tanh, where
from optiacts.backends.triton.written import written
from optiacts.curves import Curve, get

_NAMES = {
    "divide": divide,
    "erf": erf,
    "exp": exp,
    "fma": fma,
    "like": like,
    "log1p": log1p,
    "rounded": rounded,
    "tanh": tanh,
    "where": where,
}


def slope_of_input(curve: Curve) -> Any:
    """The function ``slope(z, y)``: f' of ``curve`` from its input and its output, in float32."""
    return _slope(curve.name)


@functools.cache
def _slope(name: str) -> Any:
    expression = get(name).triton_slope
    assert expression is not None
    body = f"z, y = clamp(z, -1e38, 20.0), clamp(y, -1e38, 20.0)\nu = tl.exp(z)\nreturn {expression}"
    return written(f"slope from the input of {name}", "z, y", body, {"clamp": clamp})


def value(curve: Curve) -> Any:
    """The forward of ``curve``, from a tile in the dtype of the activation to the outputs."""
    return _compiled(curve.name)


@functools.cache
def _compiled(name: str) -> Any:
    """One function per curve: Triton caches what it compiles by function."""
    expression = get(name).triton
    assert expression is not None
    return written(f"value of {name}", "x", f"z = x.to(tl.float32)\nreturn ({expression}).to(x.dtype)", _NAMES)
