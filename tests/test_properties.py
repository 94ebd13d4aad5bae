"""Property-based: any shape, strides, dtype and values, NaN, infinities, zeros and subnormals among them."""

import functools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optiacts.accuracy import exhaustive_errors
from optiacts.curves import get
from optiacts.decoders.inverse import derivative_from_output
from optiacts.functional import apply
from tests.samples import NAMES, around_minimum, bits_of, true_derivative

EDGES = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45, 1e-38, 6e-8, -0.7517915, -1.2784645, -1.192431]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    value = st.one_of(st.sampled_from(EDGES), st.floats(-12, 12, width=32), st.floats(width=32))
    pool = torch.tensor(draw(st.lists(value, min_size=1, max_size=40)), dtype=torch.float64)
    count = math.prod(shape)
    x = pool.repeat(count // len(pool) + 1)[:count].to(dtype).reshape(shape)
    if x.ndim:
        x = x.permute(draw(st.permutations(range(x.ndim))))
        dim, step = draw(st.integers(0, x.ndim - 1)), draw(st.integers(1, 3))
        x = x[(slice(None),) * dim + (slice(None, None, step),)]
    return x


def allowed(name: str, dtype: torch.dtype, slope: Tensor) -> Tensor:
    """The contract's bound at each element, and the rounding of the result."""
    rounding = slope.abs() * torch.finfo(dtype).eps
    if dtype in (torch.bfloat16, torch.float16):
        return rounding + 1.1 * exhaustive_errors(name, dtype).worst_floor
    return rounding + (5e-8 if dtype == torch.float64 else max(1.5e-4, lost_in_float32(name)))


@functools.cache
def lost_in_float32(name: str) -> float:
    """What exact inversion of PyTorch's own outputs errs by near the minimum.

    It depends on the CPU and the layout: with AVX-512 GELU has a kernel of its own for what is contiguous.
    """
    curve = get(name)
    x = around_minimum(curve, width=20_000)[1:].view(2, -1)

    def lost(x: Tensor) -> float:
        found = derivative_from_output(curve, curve.forward(x).double(), curve.left(x))
        return float((found - true_derivative(curve, x)).abs().max())

    return max(lost(x), lost(x.t()), lost(x[:, ::3]))


@settings(max_examples=400, deadline=None)
@given(x=tensors(), name=st.sampled_from(NAMES), inplace=st.booleans())
def test_forward_bits_and_gradient(x: Tensor, name: str, inplace: bool) -> None:
    curve, leaf = get(name), x.clone().requires_grad_()
    wanted = curve.forward(leaf.detach().clone())
    y = apply(name, leaf * 1 if inplace else leaf, inplace)
    assert y.shape == x.shape and torch.equal(y.isnan(), wanted.isnan())
    numbers = ~wanted.isnan()
    assert torch.equal(bits_of(y.detach())[numbers], bits_of(wanted)[numbers])

    (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert torch.equal(grad.isnan(), wanted.isnan())
    finite = x.isfinite() & wanted.isfinite()
    slope = true_derivative(curve, x)[finite]
    assert ((grad.double()[finite] - slope).abs() <= allowed(name, x.dtype, slope)).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    name=st.sampled_from(NAMES),
)
def test_large_and_small_sizes(rows: int, columns: int, dtype: torch.dtype, name: str) -> None:
    """Around the sizes where kernels change from one thread to several, and rows that end within a byte."""
    columns = min(columns, 200_000 // rows)
    x = torch.linspace(-6, 6, rows * columns).reshape(rows, columns).to(dtype).requires_grad_()
    y = apply(name, x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    slope = true_derivative(get(name), x.detach())
    assert ((grad.double() - slope).abs() <= allowed(name, dtype, slope)).all()
