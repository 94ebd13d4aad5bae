"""Gradients by PyTorch's own checkers in float64, second derivatives, and values at the edges."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from optiacts.curves import get
from optiacts.functional import apply
from tests.samples import DTYPES, NAMES, SIXTEEN_BIT, every_finite, float32_bit_space, true_derivative


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_at_default_tolerances(name: str, inplace: bool) -> None:
    x = (torch.randn(2, 9, dtype=torch.float64) * 2).requires_grad_()

    def function(x: torch.Tensor) -> torch.Tensor:
        return apply(name, x.clone() if inplace else x, inplace)

    assert gradcheck(function, x, check_forward_ad=True, check_batched_grad=not inplace)
    assert gradgradcheck(function, x)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_across_the_minimum(name: str) -> None:
    x = torch.linspace(-0.01, 0.01, 20, dtype=torch.float64).add(get(name).x_min).requires_grad_()
    assert gradcheck(lambda x: apply(name, x), x)
    assert gradgradcheck(lambda x: apply(name, x), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivative(name: str, dtype: torch.dtype) -> None:
    """Two roundings of f'' in the dtype, wherever f' is not lost to rounding."""
    curve = get(name)
    x = torch.linspace(-4, 6, 501).to(dtype)
    x = x[(x.double() - curve.x_min).abs() > 0.2].requires_grad_()
    (first,) = torch.autograd.grad(apply(name, x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    truth = curve.second_derivative(x.detach().double(), torch)
    worst = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    assert (second.double() - truth).abs().max() <= worst


def test_third_derivatives_are_refused_not_wrong() -> None:
    x = torch.randn(4, requires_grad=True)
    (first,) = torch.autograd.grad(apply("gelu", x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        second.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_for_every_finite_input(name: str) -> None:
    for x in (*map(every_finite, SIXTEEN_BIT), float32_bit_space(5003)):
        x.requires_grad_()
        y = apply(name, x)
        y.backward(torch.ones_like(y))
        assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str, dtype: torch.dtype) -> None:
    """NaN gives NaN; infinity the finite limit where PyTorch's backward gives NaN; zeros and subnormals f'(0)."""
    tiny = torch.finfo(dtype).smallest_normal / 4
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, tiny, -tiny], dtype=dtype, requires_grad=True)
    y = apply(name, x)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert x.grad[0].isnan()
    assert x.grad[1].isnan() if y[1].isnan() else abs(x.grad[1] - 1) <= 2e-6
    assert x.grad[2].isnan() == y[2].isnan()  # PyTorch's forward says -inf * 0 = NaN, and so does the gradient
    at_zero = true_derivative(get(name), torch.zeros(()))
    assert (
        (x.grad[3:].double() - at_zero).abs() <= 2 * torch.finfo(dtype).eps + (dtype != torch.float64) * 1e-6
    ).all()


@pytest.mark.parametrize("name", NAMES)
def test_outputs_rounded_below_the_minimum(name: str) -> None:
    """All float32 outputs within 8 units below the minimum, whichever side bit: a small slope, never a NaN."""
    from optiacts.decoders import decode

    curve = get(name)
    y = torch.full((8,), curve.y_min)
    for i in range(1, 8):
        y[i] = torch.nextafter(y[i - 1], torch.tensor(-1.0))
    for left in (torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)):
        assert decode(y, left, curve).abs().max() <= 1.2e-4


def test_a_gradient_of_infinity_passes_as_in_pytorch() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    apply("silu", x).backward(torch.tensor([torch.inf, torch.inf]))
    assert x.grad is not None and x.grad.tolist() == [torch.inf, -torch.inf]
