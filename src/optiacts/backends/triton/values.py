"""The forwards, operation by operation as PyTorch's GPU kernels evaluate them, so that the results are equal.

Each takes and returns a tile in the dtype of the activation. The arithmetic is float32, rounded at the end;
only QuickGELU, which is three PyTorch operations, rounds after each of them. A Python number in an expression
becomes a float32 constant. Products and sums that PyTorch's compiler contracts to one fused operation are
written as one here, and the compiler is told to contract no others (see ``launch.FORWARD_OPTIONS``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from optiacts.backends.triton.elementary import divide, erf, exp, log1p, tanh

SQRT_HALF = tl.constexpr(0.7071067811865476)
SQRT_2_BY_PI = tl.constexpr(0.7978845608028654)
CUBIC = tl.constexpr(0.044715)
QUICK_SLOPE = tl.constexpr(1.702)


@triton.jit
def gelu(x):
    z = x.to(tl.float32)
    return (z * 0.5 * (1.0 + erf(z * SQRT_HALF))).to(x.dtype)


@triton.jit
def gelu_tanh(x):
    z = x.to(tl.float32)
    inner = SQRT_2_BY_PI * tl.fma(z * z * z, tl.full(z.shape, CUBIC, tl.float32), z)
    return (0.5 * z * (1.0 + tanh(inner))).to(x.dtype)


@triton.jit
def silu(x):
    z = x.to(tl.float32)
    return divide(z, 1.0 + exp(-z)).to(x.dtype)


@triton.jit
def mish(x):
    z = x.to(tl.float32)
    return (z * tanh(log1p(exp(z)))).to(x.dtype)


@triton.jit
def quick_gelu(x):
    scaled = (x.to(tl.float32) * QUICK_SLOPE).to(x.dtype).to(tl.float32)
    one = tl.full(scaled.shape, 1.0, tl.float32)
    gate = divide(one, 1.0 + exp(-scaled)).to(x.dtype)
    return (x.to(tl.float32) * gate.to(tl.float32)).to(x.dtype)


VALUES = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu, "mish": mish, "quick_gelu": quick_gelu}
