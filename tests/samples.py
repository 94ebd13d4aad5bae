"""Inputs that tests share, and the float64 truth they are judged by."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from optiacts.conversion.recognition import recognise_function
from optiacts.curves import Curve, unimodal
from optiacts.decoders.table import every_value

NAMES = list(unimodal())
SIXTEEN_BIT = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *SIXTEEN_BIT]


# As models write them out: gelu_python, gelu_new and gelu_fast of transformers, timm's Swish and Mish.
_WRITTEN_OUT = (
    lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    lambda x: x * torch.sigmoid(x),
    lambda x: x * torch.tanh(functional.softplus(x)),
)
EVERY = [*NAMES, "relu", *(recognise_function(f).curve for f in _WRITTEN_OUT)]


def every_finite(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit dtype."""
    x = every_value(dtype)
    return x[x.isfinite()]


def float32_bit_space(stride: int = 2039) -> Tensor:
    """Every ``stride``-th float32 by bit pattern: all exponents, both signs, subnormals, both zeros."""
    patterns = torch.arange(-(2**31), 2**31, stride, dtype=torch.int64).to(torch.int32)
    x = torch.cat([patterns.view(torch.float32), torch.tensor([0.0, -0.0])])
    return x[x.isfinite()]


def around_minimum(curve: Curve, dtype: torch.dtype = torch.float32, width: int = 100_000) -> Tensor:
    """The ``width`` nearest float32 numbers on either side of the minimum."""
    middle = torch.tensor(curve.x_min, dtype=torch.float32).view(torch.int32).item()
    patterns = torch.arange(middle - width, middle + width + 1, dtype=torch.int32)
    return patterns.view(torch.float32).to(dtype)


def true_derivative(curve: Curve, x: Tensor) -> Tensor:
    """f'(x) in float64."""
    return curve.derivative(x.double(), torch)


def bits_of(x: Tensor) -> Tensor:
    """The bit pattern of every element, as integers."""
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(sizes[x.element_size()])
