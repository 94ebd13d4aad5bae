"""The elementary functions the kernels are made of.

On a GPU they are those of the vendor's own library (libdevice, OCML), which PyTorch's kernels call as well.
Triton's interpreter, which runs the kernels on a CPU in the tests, knows neither; there numpy's serve.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

INTERPRETED: bool = knobs.runtime.interpret


def _of_numpy(function):  # type: ignore[no-untyped-def]
    """``function`` on the array inside an interpreted tensor."""
    from triton.runtime.interpreter import TensorHandle

    def apply(x):  # type: ignore[no-untyped-def]
        with np.errstate(all="ignore"):
            values = function(x.handle.data.astype(np.float64)).astype(x.handle.data.dtype)
        return tl.core.tensor(TensorHandle(values, x.handle.dtype), x.type)

    return apply


if INTERPRETED:
    import math

    erf = _of_numpy(np.vectorize(math.erf, otypes=[np.float64]))
    exp = _of_numpy(np.exp)
    tanh = _of_numpy(np.tanh)
    log1p = _of_numpy(np.log1p)
else:
    erf = libdevice.erf
    exp = libdevice.exp
    tanh = libdevice.tanh
    log1p = libdevice.log1p


@triton.jit
def divide(a, b):
    """a / b, rounded correctly, as a plain division in CUDA C++ is."""
    return tl.div_rn(a, b)
