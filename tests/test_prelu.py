"""PReLU from its output: both gradients, the bytes that are held, and weights that an output does not tell."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import optiacts
from optiacts import saved_memory
from tests.samples import DTYPES, SIXTEEN_BIT, bits_of


def gradients(function, *leaves: Tensor) -> tuple[Tensor, ...]:
    x, weight, grad = leaves
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x, weight), (x, weight), grad)


@pytest.mark.parametrize("channels", [1, 12])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_against_float64(dtype: torch.dtype, channels: int) -> None:
    """dx is PyTorch's to the bit; dw starts from rounded outputs."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(64, 12, 40, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    weight = torch.linspace(0.05, 1.5, channels, dtype=torch.float64).to(dtype)
    ours, theirs = gradients(optiacts.prelu, x, weight, grad), gradients(F.prelu, x, weight, grad)
    exact = gradients(F.prelu, x.double(), weight.double(), grad.double())
    assert torch.equal(bits_of(optiacts.prelu(x.requires_grad_(), weight)), bits_of(F.prelu(x, weight)))
    assert torch.equal(ours[0], theirs[0])
    # a sum of terms of either sign, each of them rounded: twice by us, once by PyTorch
    terms = (torch.where(x > 0, 0.0, grad.double() * x.double())).square().sum((0, 2)).sum_to_size(channels).sqrt()
    error = ((ours[1].double() - exact[1]).abs() / terms).max()
    assert error <= {torch.bfloat16: 6e-3, torch.float16: 8e-4, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]


def test_by_pytorch_s_own_checkers() -> None:
    x = (torch.randn(4, 3, 5, dtype=torch.float64) + 0.01).requires_grad_()
    weight = torch.tensor([0.25, 0.5, 1.5], dtype=torch.float64, requires_grad=True)
    assert gradcheck(optiacts.prelu, (x, weight))
    assert gradgradcheck(optiacts.prelu, (x, weight))


@pytest.mark.parametrize("shape", [(6,), (7, 5), (3, 5, 4, 4), ()])
def test_shapes(shape: tuple[int, ...]) -> None:
    x, grad = torch.randn(shape), torch.randn(shape)
    weight = torch.full((5 if len(shape) > 1 else 1,), 0.3)
    torch.testing.assert_close(gradients(optiacts.prelu, x, weight, grad), gradients(F.prelu, x, weight, grad))


def test_it_holds_its_output_alone() -> None:
    def held(act: nn.Module) -> int:
        layers = nn.Linear(32, 64), nn.Linear(64, 32)
        x = torch.randn(8, 32)
        return saved_memory(lambda: layers[1](act(layers[0](x)))).bytes - x.nbytes

    size = 8 * 64 * 4
    assert held(nn.PReLU(64)) == 2 * size
    assert held(optiacts.PReLU(64)) == size + 64 * 4  # and the weights as they were


@pytest.mark.parametrize("wrong", [0.0, -0.5, 1e-4, 1e4, float("nan")])
def test_weights_that_an_output_does_not_tell_mean_pytorch(wrong: float) -> None:
    x, grad = torch.randn(8, 3), torch.randn(8, 3)
    weight = torch.tensor([0.25, wrong, 0.5])
    y = optiacts.prelu(x.clone().requires_grad_(), weight)
    assert not type(y.grad_fn).__name__.startswith("OptiActs")
    ours, theirs = gradients(optiacts.prelu, x, weight, grad), gradients(F.prelu, x, weight, grad)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_a_weight_changed_unseen_does_no_harm() -> None:
    """Nobody counts ``weight.data.mul_()``; the gradients are those of the weight that the output was made with."""
    x, weight = torch.randn(8, 3, requires_grad=True), nn.Parameter(torch.tensor([0.25, 1.0, 0.5]))
    expected = torch.autograd.grad(F.prelu(x, weight).sum(), (x, weight))
    y = optiacts.prelu(x, weight)
    weight.data.zero_()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), (x, weight)), expected)


def test_on_other_devices_an_unseen_change_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host must not wait, what was known of the weight may be out of date: then dw is NaN, and told."""
    from optiacts.ops import norm_channels

    monkeypatch.setattr(norm_channels, "waits", lambda device: True)
    x, weight = torch.randn(8, 3, requires_grad=True), nn.Parameter(torch.tensor([0.25, 1.0, 0.5]))
    optiacts.prelu(x, weight).sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all()
    weight.data.zero_()
    by_weight = torch.autograd.grad(optiacts.prelu(x, weight).sum(), weight)[0]
    assert by_weight.isnan().all()
    optimizer = torch.optim.SGD([weight], lr=0.0)
    with pytest.raises(optiacts.UnseenChangeError):
        optimizer.step()
        optiacts.prelu(x, weight)
    optiacts.norm_weights_changed()


def test_compiled_it_is_pytorch_s_op() -> None:
    model = nn.Sequential(nn.Linear(8, 8), optiacts.PReLU())
    x = torch.randn(4, 8)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BIT], ids=str)
def test_it_is_converted(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.PReLU(16), nn.Linear(16, 8)).to(dtype)
    x = torch.randn(5, 8).to(dtype)
    expected = model(x)
    expected.sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    report = optiacts.convert(model, example_inputs=(x,))
    assert [entry.what for entry in report.converted] == ["prelu"]
    y = model(x)
    assert torch.equal(y, expected)
    y.sum().backward()
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0.02, atol=4 * torch.finfo(dtype).eps)
    optiacts.revert(model)
    assert type(model[1]) is nn.PReLU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """It computes in another dtype than those of input and weight."""
    torch.manual_seed(0)
    x = torch.randn(64, 4).to(dtype).requires_grad_()
    weight = torch.tensor([0.2, 0.3, 0.1, 0.7], requires_grad=True)
    found = []
    for prelu in (torch.nn.functional.prelu, optiacts.prelu):
        with torch.autocast("cpu", torch.bfloat16):
            y = prelu(x, weight)
        found.append((y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))))
    for due, got in zip(*found, strict=True):
        assert got.dtype is due.dtype
    (due, by_x, by_weight), (got, *ours) = found
    assert torch.equal(got, due) and torch.equal(ours[0], by_x)
    assert (ours[1] - by_weight).norm() <= 1e-2 * by_weight.norm()
