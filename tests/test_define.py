"""Activations of one's own: what define makes of a function, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import optiacts
from optiacts import CurveError, backends, curves, saved_memory
from optiacts.accuracy import exhaustive_errors
from tests.samples import DTYPES, SIXTEEN_BIT, bits_of, every_finite


def sharp_mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(1.5 * x))


def even(x: Tensor) -> Tensor:
    return x * torch.erf(x)


def centred_softplus(x: Tensor) -> Tensor:
    return F.softplus(x) - math.log(2)


FUNCTIONS = {sharp_mish: 1, even: 1, centred_softplus: 0, F.tanhshrink: 0, torch.asinh: 0}
every_function = pytest.mark.parametrize(
    ("f", "side_bits"), FUNCTIONS.items(), ids=lambda f: getattr(f, "__name__", "")
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gradients(f, x: Tensor, grad: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf, grad)[0]


@every_function
def test_outputs_bytes_and_gradients(f, side_bits: int) -> None:
    act = optiacts.define(f)
    assert act.side_bits == side_bits and act.name in curves.GATES
    for dtype in DTYPES:
        x = every_finite(dtype) if dtype in SIXTEEN_BIT else torch.randn(4096, dtype=dtype) * 2
        memory = saved_memory(act, x.clone().requires_grad_())
        assert torch.equal(bits_of(memory.output), bits_of(f(x)))
        assert memory.bytes == x.nbytes + side_bits * math.ceil(x.numel() / 8)
    x = torch.linspace(-8, 8, 50_001)
    exact = gradients(f, x.double(), torch.ones(x.shape, dtype=torch.float64))
    found = gradients(act, x, torch.ones_like(x)).double()
    away = (x.double() - (curves.get(act.name).x_min if side_bits else -99)).abs() > 0.1
    assert (found - exact)[away].abs().max() <= 2.5e-6
    assert (found - exact).abs().max() <= 1.5e-4
    for dtype in SIXTEEN_BIT:
        errors = exhaustive_errors(act.name, dtype)
        assert errors.worst <= 1.1 * errors.worst_floor and errors.rms <= 1.1 * errors.rms_floor


@every_function
def test_by_pytorch_s_own_checkers(f, side_bits: int) -> None:
    act = optiacts.define(f)
    x = torch.tensor([-3.0, -1.1, -0.4, 0.3, 1.7, 4.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(act, x) and gradgradcheck(act, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("f", [sharp_mish, even, centred_softplus])
def test_it_gates(f, dtype: torch.dtype) -> None:
    act = optiacts.define(f)
    gate, up = (torch.randn(64, 256).to(dtype).requires_grad_() for _ in range(2))
    h = act.gated(gate, up)
    assert torch.equal(bits_of(h), bits_of(f(gate.detach()) * up.detach()))
    ours = torch.autograd.grad(h, (gate, up), torch.ones_like(h))
    theirs = torch.autograd.grad(f(gate) * up, (gate, up), torch.ones_like(h))
    g, u = (t.detach().double().requires_grad_() for t in (gate, up))
    exact = torch.autograd.grad((f(g) * u).sum(), (g, u))
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        error, due = ((found.double() - truth).norm() / truth.norm() for found in (mine, other))
        assert error <= (1.6 * due if dtype == torch.bfloat16 else 1e-6)  # s is rounded as well


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BIT], ids=str)
@every_function
def test_the_kernels_agree_with_the_eager_backend(f, side_bits: int, dtype: torch.dtype) -> None:
    curve = curves.get(optiacts.define(f).name)
    x = (torch.randn(40, 37) * 3).to(dtype)
    assert backends.select(x, curve).name == "native"
    y, bits = backends.native.activation_forward(x, curve, [])
    grad = torch.randn_like(y)
    ours, eager = (b.activation_backward(grad, y, bits, curve) for b in (backends.native, backends.eager))
    torch.testing.assert_close(ours, eager, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_it_works_compiled() -> None:
    act = optiacts.define(centred_softplus)
    model = nn.Sequential(nn.Linear(8, 16), act.module(), nn.Linear(16, 8))
    x = torch.randn(4, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    memory = saved_memory(compiled, x)
    assert memory.bytes == x.nbytes + 4 * 16 * 4
    ours = torch.autograd.grad(memory.output.sum(), list(model.parameters()))
    torch.testing.assert_close(ours, torch.autograd.grad(model(x).sum(), list(model.parameters())))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(sharp_mish(self.up(x)))


def test_convert_finds_it() -> None:
    act = optiacts.define(sharp_mish)
    model, x = Block(), torch.randn(16, 8)
    expected = model(x)
    report = optiacts.convert(model, example_inputs=(x,))
    assert [entry.what for entry in report.converted] == [act.name]
    assert torch.equal(model(x), expected)
    assert report.saved_bytes is not None
    assert report.saved_bytes[1] == 4 * (x.numel() + 16 * 64) + 16 * 8


def test_a_name_is_what_is_computed() -> None:
    def own(k: float):
        return lambda x: x * torch.tanh(F.softplus(k * x)) + 0.0 * x

    first, again, other = (optiacts.define(own(k)) for k in (1.2, 1.2, 1.1))
    assert first.name == again.name != other.name
    x = torch.randn(100)
    assert torch.equal(first(x), own(1.2)(x)) and torch.equal(other(x), own(1.1)(x))
    constants = {"k": 1.2}

    def reads(x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(constants["k"] * x)) + 0.0 * x

    recorded = optiacts.define(reads)
    constants["k"] = 3.0  # as it was
    assert torch.equal(recorded(x), first(x))


def test_what_is_known_stays_what_it_is() -> None:
    assert optiacts.define(lambda x: x * torch.sigmoid(1.7 * x)).name == "swish(beta=1.7)"
    assert optiacts.define(nn.GELU()).name == "gelu"


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda x: x**3 - 3 * x, "turns 2 times, near x = -0.999, 1"),
        (lambda x: -x * x, "has a maximum"),
        (lambda x: torch.where(x > 1, x + 1, x), "jumps near x = 1"),
        (lambda x: torch.relu(x - 1) + x, "slope of .* jumps near x = 1"),
        (lambda x: torch.softmax(x, -1), "not point-wise"),
        (lambda x: x - x.mean(), "not point-wise"),
        (lambda x: F.dropout(x, 0.5), "not point-wise"),
        (lambda x: x + (torch.round(x) - x).detach(), "another slope than its autograd"),
        (lambda x: 0 * x + 1, "is constant"),
        (lambda x: x.float().double(), "does more than compute"),
        (lambda x: x.sum(), "must return a tensor of the shape"),
        (lambda x: x.mul_(2), "overwrites its input"),
        (lambda x: torch.log(x), "is no number somewhere"),
        (nn.PReLU(), "has parameters"),
        (lambda x, w=nn.Parameter(torch.ones(()).double()): w * x * x, "something that is learnt"),  # noqa: B008
    ],
)
def test_what_cannot_be_decoded_is_refused(f, reason: str) -> None:
    with pytest.raises(CurveError, match=reason):
        optiacts.define(f)
