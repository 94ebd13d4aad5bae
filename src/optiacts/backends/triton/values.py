"""The forwards, operation by operation as PyTorch's GPU kernels evaluate them, so that the results are equal.

Each curve brings its own, as an expression in ``z``: the tile ``x`` of inputs, in float32. The result is rounded to
the dtype of x at the end; a curve that is several PyTorch operations says ``rounded(..., x)`` after each of them. A
Python number beside a tile becomes a float32 constant; where a function needs a tile, ``like(z, number)`` is one.
Products and sums that PyTorch's compiler contracts to one fused operation are written as ``fma`` here, and the
compiler is told to contract no others (see ``launch.forward_constants``).
"""

from __future__ import annotations

import functools
import linecache
from typing import Any

import triton
import triton.language as tl

from optiacts.backends.triton.elementary import divide, erf, exp, fma, like, log1p, rounded, tanh, where
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
    "tl": tl,
    "where": where,
}
_SOURCE = """\
def value(x):
    z = x.to(tl.float32)
    return ({expression}).to(x.dtype)
"""


def value(curve: Curve) -> Any:
    """The forward of ``curve``, from a tile in the dtype of the activation to the outputs."""
    return _compiled(curve.name)


@functools.cache
def _compiled(name: str) -> Any:
    """One function per curve: Triton caches what it compiles by function."""
    expression = get(name).triton
    assert expression is not None
    source = _SOURCE.format(expression=expression)
    file = f"<optiacts forward of {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # where Triton reads it
    scope: dict[str, Any] = dict(_NAMES)
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope["value"])
