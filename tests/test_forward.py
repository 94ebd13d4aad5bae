"""The forward is PyTorch's, bit for bit, in every dtype and memory layout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import optiacts
from optiacts.curves import get
from optiacts.functional import apply
from tests.samples import NAMES, SIXTEEN_BIT, bits_of, every_finite, float32_bit_space, true_derivative

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "0-dim": lambda x: x.flatten()[0],
    "1-dim": lambda x: x.flatten()[:13],
    "empty": lambda x: x[:0],
    "empty last": lambda x: x[..., :0],
    "transposed": lambda x: x.transpose(0, 2),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other": lambda x: x[..., ::2],
    "half of a fused projection": lambda x: x.chunk(2, dim=-1)[1],
    "every other, transposed": lambda x: x[:, ::2].transpose(1, 3),
    "expanded": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "flipped strides of size one": lambda x: x[:, :1].transpose(0, 1),
    "offset": lambda x: x.flatten()[3:],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_16_bit_input(name: str) -> None:
    for x in map(every_finite, SIXTEEN_BIT):
        assert torch.equal(bits_of(apply(name, x.clone().requires_grad_())), bits_of(get(name).forward(x)))


@pytest.mark.parametrize("name", NAMES)
def test_float32_bit_space(name: str) -> None:
    x = float32_bit_space(1009)
    assert torch.equal(bits_of(apply(name, x.clone().requires_grad_())), bits_of(get(name).forward(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_layouts(name: str, layout: str, dtype: torch.dtype) -> None:
    """Values, strides and gradients in every layout; in place where PyTorch can."""
    base = torch.randn(4, 6, 5, 10).to(dtype)
    x = LAYOUTS[layout](base.clone())
    wanted = get(name).forward(x)
    y = apply(name, x.detach().requires_grad_())
    assert torch.equal(bits_of(y), bits_of(wanted)) and y.stride() == wanted.stride()

    leaf = base.clone().requires_grad_()
    y = apply(name, LAYOUTS[layout](leaf * 1))
    weight = torch.randn(y.shape).to(dtype)
    y.backward(weight)
    slope = true_derivative(get(name), x) * weight.double()
    truth = torch.autograd.grad(LAYOUTS[layout](probe := base.double().requires_grad_()), probe, slope)[0]
    assert leaf.grad is not None
    worst = {torch.float64: 1e-7, torch.float32: 2e-3, torch.float16: 0.02, torch.bfloat16: 0.06}[dtype]
    assert (leaf.grad.double() - truth).abs().max().item() <= worst if truth.numel() else True


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"expanded", "half of a fused projection"}))
@pytest.mark.parametrize("name", NAMES)
def test_inplace_reuses_the_storage(name: str, layout: str) -> None:
    leaf = torch.randn(4, 6, 5, 10, requires_grad=True)
    hidden = leaf * 1
    x = LAYOUTS[layout](hidden)
    wanted, before = get(name).forward(x.detach()), x.data_ptr()
    y = apply(name, x, inplace=True)
    assert y is x and y.data_ptr() == before
    assert torch.equal(bits_of(y), bits_of(wanted))
    y.sum().backward()
    assert leaf.grad is not None
    touched = torch.autograd.grad(LAYOUTS[layout](probe := leaf.detach().requires_grad_()).sum(), probe)[0] != 0
    truth = torch.where(touched, true_derivative(get(name), leaf.detach()), 0.0)
    assert (leaf.grad.double() - truth).abs().max() <= 2e-4


def test_inplace_on_a_leaf_is_refused_as_in_pytorch() -> None:
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        optiacts.silu(torch.randn(3, requires_grad=True), inplace=True)


def test_inplace_without_a_gradient() -> None:
    for function in (optiacts.gelu, optiacts.silu, optiacts.mish, optiacts.quick_gelu):
        x = torch.randn(5)
        wanted = function(x)
        assert function(x, inplace=True) is x and torch.equal(x, wanted)
