"""The elementary functions the kernels are made of.

On a GPU they are those of the vendor's own library (libdevice, OCML), which PyTorch's kernels call as well.
Triton's interpreter, which runs the kernels on a CPU in the tests, knows neither; there numpy's serve.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

INTERPRETED: bool = knobs.runtime.interpret
_GPU: str = "hip" if torch.version.hip else "xpu" if getattr(torch.version, "xpu", None) else "cuda"
VENDOR: str = "interpreted" if INTERPRETED else _GPU


def _of_numpy(function):
    """``function`` on the array inside an interpreted tensor."""
    from triton.runtime.interpreter import TensorHandle

    def apply(x):
        with np.errstate(all="ignore"):
            values = function(x.handle.data.astype(np.float64)).astype(x.handle.data.dtype)
        return tl.core.tensor(TensorHandle(values, x.handle.dtype), x.type)

    return apply


# CUDA's erff from 12.6 to 13.0, which PyTorch's wheels are built with, as its compiler writes it out: 1 - 2^p(|x|)
# from 1.003 on, x + x p(x^2) below. The libdevice of Triton 3.6 has other coefficients, that of 3.9 these.
ERF_BORDER = tl.constexpr(1.00296)
ERF_BEYOND = tl.constexpr(
    (0.000112198715, -0.0013275252, 0.008396535, -0.040246584, 0.15950431, 0.9129177, 0.62906003)
)
ERF_WITHIN = tl.constexpr(
    (8.4834945e-05, -0.00082130916, 0.005213489, -0.026868774, 0.11284005, -0.37612665, 0.12837915)
)


@triton.jit
def _erf(x):
    size = tl.abs(x)
    beyond = size >= like(x, ERF_BORDER)
    v = tl.where(beyond, size, x * x)
    p = tl.where(beyond, like(x, ERF_BEYOND[0]), like(x, ERF_WITHIN[0]))
    for power in tl.static_range(1, 7):
        p = tl.fma(p, v, tl.where(beyond, like(x, ERF_BEYOND[power]), like(x, ERF_WITHIN[power])))
    factor = tl.where(beyond, -size, x)
    p = tl.fma(p, factor, factor)
    far = 1.0 - tl.exp2(p)
    return tl.where(beyond, tl.where(x < 0, -far, far), p)


@triton.jit
def like(v, NUMBER: tl.constexpr):
    """A tile of one number: a float32 constant, where a Python number in an expression might be float64."""
    return tl.full(v.shape, NUMBER, tl.float32)


@triton.jit
def fma(a, b, c):
    """a * b + c, rounded once."""
    return tl.fma(a, b, c)


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def rounded(z, x):
    """``z`` rounded to the dtype of ``x``, in float32."""
    return z.to(x.dtype).to(tl.float32)


@triton.jit
def divide(a, b):
    """a / b, rounded correctly, as a plain division in CUDA C++ is."""
    return tl.div_rn(a, b)


@triton.jit
def log2_approximate(x, VENDOR: tl.constexpr):
    """The logarithm to base 2 of a normal number, absolutely good to 1e-6: one instruction on a GPU."""
    if VENDOR == "cuda":
        return libdevice.fast_log2f(x)
    else:
        return tl.log2(x)


if INTERPRETED:
    erf = _of_numpy(np.vectorize(math.erf, otypes=[np.float64]))
    exp = _of_numpy(np.exp)
    tanh = _of_numpy(np.tanh)
    log1p = _of_numpy(np.log1p)
    expm1 = _of_numpy(np.expm1)
else:
    erf = _erf
    exp = libdevice.exp
    tanh = libdevice.tanh
    log1p = libdevice.log1p
    expm1 = libdevice.expm1
