"""Weights that spoil what a norm's output tells: the gradient is exact, or there is an error.

Each case is run as on a CPU, where every forward looks, and as on a device that the host does not wait for.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import optiacts
from optiacts.norms import Norm
from optiacts.ops import norm_channels

ROWS, CHANNELS = 64, 2560  # of which 40 may be rescued
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# relative, in the Euclidean norm; a fused kernel's rounding of 16-bit results alone is 1.7e-3 and 2.1e-4
MOST = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}


def norms(dtype: torch.dtype) -> list[nn.Module]:
    torch.manual_seed(0)
    found = [optiacts.LayerNorm(CHANNELS, dtype=dtype), optiacts.RMSNorm(CHANNELS, dtype=dtype, eps=1e-5)]
    with torch.no_grad():
        for module in found:
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(CHANNELS))
    return found


def exact(module: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The gradients of x and of the parameters, in float64."""
    kind = Norm(isinstance(module, nn.LayerNorm), 1e-5)
    inputs = [t.detach().double().requires_grad_() for t in (x, *module.parameters())]
    weight, bias = (*inputs[1:], None)[:2]
    return list(torch.autograd.grad(kind.reference(inputs[0], weight, bias), inputs, grad.double()))


def is_exact(module: nn.Module, between: Callable[[], None] = lambda: None) -> bool:
    """Whether a forward and a backward give the gradients of float64, ``between`` being called between the two."""
    dtype = module.weight.dtype
    x = torch.randn(ROWS, CHANNELS, dtype=torch.float64).to(dtype).requires_grad_()
    grad = torch.randn(ROWS, CHANNELS, dtype=torch.float64).to(dtype)
    truth = exact(module, x, grad)
    y = module(x)
    between()
    found = torch.autograd.grad(y, [x, *module.parameters()], grad)
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # between subnormal results
    return all(
        bool((ours.double() - true).norm() <= MOST[dtype] * true.norm() + step * true.numel() ** 0.5)
        for ours, true in zip(found, truth, strict=True)
    )


def set_weights(value: float, count: int) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        with torch.no_grad():
            module.weight[:: CHANNELS // count] = value  # type: ignore[index]

    return change


def large_biases(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        with torch.no_grad():
            module.bias[:5] = 128 * module.weight[:5]


def zeros(module: nn.Module) -> None:
    nn.init.zeros_(module.weight)  # type: ignore[arg-type]


SEEN: dict[str, Callable[[nn.Module], None]] = {
    "one dead": set_weights(0.0, 1),
    "40 dead": set_weights(0.0, 40),
    "41 dead": set_weights(0.0, 64),
    "all dead": zeros,
    "tiny": set_weights(1e-33, 20),
    "subnormal in bfloat16": set_weights(3e-40, 20),
    "subnormal in float16": set_weights(3e-5, 20),
    "enormous": set_weights(1e3, 20),
    "biases 128 times the weights": large_biases,
    "loaded": lambda module: (
        module.load_state_dict({k: torch.zeros_like(v) for k, v in module.state_dict().items()}) and None
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SEEN)
def test_changes_that_pytorch_counts(case: str, dtype: torch.dtype, device: str) -> None:
    for module in norms(dtype):
        assert is_exact(module)
        SEEN[case](module)
        assert is_exact(module), module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 30, CHANNELS])
@pytest.mark.parametrize("optimizer", ["fused AdamW", "SGD", "fused SGD"])
def test_an_optimizer_step_that_kills_weights(optimizer: str, count: int, dtype: torch.dtype, device: str) -> None:
    """Fused optimizers do not count their changes; the hook after a step looks."""
    for module in norms(dtype):
        assert is_exact(module)
        kind = torch.optim.AdamW if "AdamW" in optimizer else torch.optim.SGD
        step = kind(module.parameters(), lr=1.0, weight_decay=0.0, fused="fused" in optimizer)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            module.weight[:count] = 1.0
            module.weight.grad[:count] = 1.0
        assert is_exact(module)
        step.step()
        if optimizer == "SGD" or (
            "SGD" in optimizer and dtype == torch.float32
        ):  # fused, in 16 bits: no step on CPUs
            assert not module.weight[:count].any()
        assert is_exact(module), module
        assert is_exact(module)  # and once more, with what was learnt


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dead", [1, 30, CHANNELS])
def test_changes_that_nobody_sees(dead: int, dtype: torch.dtype, device: str) -> None:
    """``.data.copy_`` as of a moving average: exact on a CPU, elsewhere NaN and then an error that names the norm."""
    for module in norms(dtype):
        assert is_exact(module)
        module.weight.data[:dead] = 0.0
        if device == "looks in every forward":
            assert is_exact(module)
            continue
        x = torch.randn(ROWS, CHANNELS).to(dtype).requires_grad_()
        module(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isnan().all()
        assert module.weight.grad.isnan().all()
        torch.optim.SGD([nn.Parameter(torch.ones(1))]).step()
        with pytest.raises(optiacts.UnseenChangeError, match="norm_weights_changed"):
            module(x)
        assert is_exact(module)  # it was looked at after the step


def test_saying_so_avoids_the_error(device: str) -> None:
    for module in norms(torch.float32):
        assert is_exact(module)
        module.weight.data.zero_()
        optiacts.norm_weights_changed()
        assert is_exact(module)


def test_changes_between_forward_and_backward(device: str) -> None:
    """Unseen ones do not reach what was saved; those that PyTorch counts are its error."""
    for module in norms(torch.float32):
        before = module.weight.detach().clone()
        assert is_exact(module, between=lambda m=module: m.weight.data.mul_(2))
        module.weight.data.copy_(before)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            is_exact(module, between=lambda m=module: zeros(m))


def test_tied_norms_and_accumulated_gradients(device: str) -> None:
    for module in norms(torch.float32):
        with torch.no_grad():
            module.weight[3] = 0.0
        x = torch.randn(ROWS, CHANNELS, requires_grad=True)
        wide = nn.LayerNorm(CHANNELS) if isinstance(module, nn.LayerNorm) else nn.RMSNorm(CHANNELS, eps=1e-5)
        wide.load_state_dict(module.state_dict())
        wide.double()
        for _ in range(2):
            module(module(x).tanh()).square().sum().backward()
            wide(wide(x.double()).tanh()).square().sum().backward()
        for ours, true in zip(module.parameters(), wide.parameters(), strict=True):
            assert (ours.grad.double() - true.grad).norm() <= 2e-6 * true.grad.norm()


def test_weights_cast_from_float32_masters(device: str) -> None:
    """A new tensor in each forward: nothing to remember, so other devices keep the input."""
    master = torch.zeros(CHANNELS, requires_grad=True)
    x = torch.randn(ROWS, CHANNELS, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(ROWS, CHANNELS, dtype=torch.bfloat16)
    (found,) = torch.autograd.grad(optiacts.rms_norm(x, (CHANNELS,), master.bfloat16(), 1e-5), master, grad)
    _, rstd = Norm(False, 1e-5).statistics(x.detach().double())
    truth = (grad.double() * x.detach().double() * rstd).sum(0)
    assert (found.double() - truth).norm() <= 4e-3 * truth.norm()


def test_it_returns_to_its_output_only_when_it_is_well_again(device: str) -> None:
    """41 dead channels: it keeps its input; 30: still, on devices that remember; 20: its output again."""
    (module, _) = norms(torch.float32)
    linear = nn.Linear(CHANNELS, 8)
    x = torch.randn(ROWS, CHANNELS, requires_grad=True)
    held = {}
    for dead in (0, 41, 30, 20):
        with torch.no_grad():
            module.weight.fill_(1.0)
            module.weight[:dead] = 0.0
        assert is_exact(module)
        held[dead] = optiacts.saved_memory(nn.Sequential(module, linear), x).bytes
    whole = ROWS * CHANNELS * 4
    assert held[41] >= 2 * whole
    assert held[0] < held[20] < 1.1 * whole
    assert held[30] < 1.1 * whole if device == "looks in every forward" else held[30] == held[41]


def test_unseen_changes_do_not_reach_second_derivatives_silently(device: str) -> None:
    """There the parameters themselves take part: a change since the forward is an error, or NaN and then an error."""
    for module in norms(torch.float32):
        module(torch.randn(ROWS, CHANNELS))  # what is remembered, is so from now on
        for change in (lambda m: m.weight.data.mul_(2), lambda m: m.weight.data.copy_(torch.ones(CHANNELS))):
            x = torch.randn(ROWS, CHANNELS, requires_grad=True)
            y = module(x)
            change(module)
            if device == "looks in every forward":
                with pytest.raises(optiacts.UnseenChangeError):
                    torch.autograd.grad(y.sum(), [x, module.weight], create_graph=True)
                continue
            gradients = torch.autograd.grad(y.square().sum(), [x, module.weight], create_graph=True)
            assert all(gradient.isnan().all() for gradient in gradients)
            torch.optim.SGD([nn.Parameter(torch.ones(1))]).step()
            with pytest.raises(optiacts.UnseenChangeError):
                module(x)


def test_a_bad_channel_spoils_all_second_derivatives_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight killed unseen before the forward, on a device that remembers: nothing finite and wrong comes out."""
    optiacts.norm_weights_changed()
    monkeypatch.setattr(norm_channels, "waits", lambda device: True)
    for module in norms(torch.float32):
        module(torch.randn(ROWS, CHANNELS))
        module.weight.data[3] = 0.0
        x = torch.randn(ROWS, CHANNELS, requires_grad=True)
        gradients = torch.autograd.grad(module(x).square().sum(), [x, module.weight], create_graph=True)
        assert all(gradient.isnan().all() for gradient in gradients)
    optiacts.norm_weights_changed()
