"""The activations besides the unimodal ones: PyTorch's bits, exact gradients, and the bytes that are held."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import optiacts
from optiacts import curves, decoders, saved_memory
from optiacts.accuracy import exhaustive_errors, float32_errors
from optiacts.decoders.table import told
from tests.activations import ACTIVATIONS, NAMED, Activation
from tests.samples import DTYPES, SIXTEEN_BIT, bits_of, every_finite, float32_bit_space, true_derivative

every_activation = pytest.mark.parametrize("activation", **NAMED)
ROWS, HIDDEN = 24, 104


def gradient(function, x: Tensor, grad: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, grad)[0]


@pytest.mark.parametrize("name", [*curves.GATES, *(a.curve for a in ACTIVATIONS)])
def test_the_curve_is_what_it_says(name: str) -> None:
    curves.check(curves.get(name))


@every_activation
def test_the_output_is_that_of_pytorch(activation: Activation) -> None:
    for x in (*map(every_finite, SIXTEEN_BIT), float32_bit_space(5003), torch.randn(999, dtype=torch.float64)):
        y = activation.ours(x.clone().requires_grad_())
        assert y.requires_grad and y.grad_fn is not None
        assert torch.equal(bits_of(y), bits_of(activation.theirs(x)))
        assert torch.equal(bits_of(activation.ours(x)), bits_of(y))  # without a gradient


@every_activation
def test_it_holds_its_output_alone(activation: Activation) -> None:
    dtype = torch.bfloat16
    size, bits = ROWS * HIDDEN * dtype.itemsize, ROWS * HIDDEN // 8
    x = torch.randn(ROWS, 32).to(dtype)

    def held(act: nn.Module) -> int:
        layers = nn.Linear(32, HIDDEN, dtype=dtype), nn.Linear(HIDDEN, 32, dtype=dtype)
        return saved_memory(lambda: layers[1](act(layers[0](x)))).bytes - x.nbytes

    side_bits = curves.get(activation.curve).decoder.side_bits
    assert held(activation.theirs) == (1 + activation.held) * size
    assert held(activation.ours) == size + side_bits * bits


@every_activation
def test_gradients_by_pytorch_s_own_checkers(activation: Activation) -> None:
    curve = curves.get(activation.curve)
    x = torch.randn(7, dtype=torch.float64) * 2
    for kink in (0.0, *curve.kinks):
        x = torch.where((x - kink).abs() < 1e-3, kink + 0.01, x)
    x.requires_grad_()
    assert gradcheck(activation.ours, x, check_forward_ad=True)
    assert gradgradcheck(activation.ours, x)
    assert gradcheck(lambda x: optiacts.activation(x.clone(), activation.curve, inplace=True), x)


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@every_activation
def test_every_16_bit_input_is_decoded_within_the_contract(activation: Activation, dtype: torch.dtype) -> None:
    errors = exhaustive_errors(activation.curve, dtype)
    underflows = activation.curve == "relu_squared"  # where an output of 0 is read as that of x <= 0
    assert errors.worst <= (2 if underflows else 1.1) * errors.worst_floor + 1e-8  # of a slope in float32
    assert errors.rms <= 1.1 * errors.rms_floor + 1e-8


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@every_activation
def test_16_bit_gradients_are_rounded_once_or_pytorch_s_own(activation: Activation, dtype: torch.dtype) -> None:
    """The contract through the whole path: 1.1 x the floor, and half a unit in the last place."""
    curve, x = curves.get(activation.curve), every_finite(dtype)
    x = told(curve, x[curve.forward(x).isfinite()])
    slope = gradient(activation.ours, x, torch.ones_like(x)).double()
    error, half_unit = (slope - true_derivative(curve, x)).abs(), slope.abs() * torch.finfo(dtype).eps / 2
    underflows = activation.curve == "relu_squared"
    floor = exhaustive_errors(activation.curve, dtype).worst_floor
    assert (error - half_unit).max() <= (2 if underflows else 1.1) * floor + 1e-7


@every_activation
def test_float32_within_the_contract(activation: Activation) -> None:
    """2e-6 and, near a minimum, 1.2e-4; unless PyTorch's rounding of the output alone has already lost more."""
    curve = curves.get(activation.curve)
    x = torch.cat([torch.linspace(-15, 15, 200_001), float32_bit_space(20011)])
    x = x[(x.abs() <= 15)]
    for kink in curve.kinks:
        x = x[(x - kink).abs() > 1e-6 * abs(kink)]
    e = float32_errors(curve, x)
    assert e.far <= max(2e-6, 1.2 * e.exact_far)
    assert e.anywhere <= max(1.2e-4, e.exact_anywhere)
    slope = gradient(activation.ours, x, torch.ones_like(x))
    pieces = 1e-7  # of the kernels' decode: see decoders/pieces.py
    assert (slope.double() - true_derivative(curve, x)).abs().max() <= 1.01 * e.anywhere + pieces


@every_activation
def test_gradients_are_finite_wherever_pytorch_s_are(activation: Activation) -> None:
    for x in (*map(every_finite, SIXTEEN_BIT), float32_bit_space(5003)):
        theirs, ours = (gradient(f, x, torch.ones_like(x)) for f in (activation.theirs, activation.ours))
        assert (ours.isfinite() | ~theirs.isfinite()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_activation
def test_nan_stays_nan_and_zeros_have_the_slope_of_zero(activation: Activation, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 4
    x = torch.tensor([torch.nan, torch.inf, 0.0, -0.0, tiny, -tiny], dtype=dtype)
    ours, theirs = (gradient(f, x, torch.ones_like(x)) for f in (activation.ours, activation.theirs))
    nan = activation.ours(x).isnan()
    assert torch.equal(activation.theirs(x).isnan(), nan)
    if not theirs[0].isfinite():
        assert ours[0].isnan()
    torch.testing.assert_close(ours[2:], theirs[2:], rtol=0, atol=4 * torch.finfo(dtype).eps + 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_activation
def test_layouts(activation: Activation, dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 5, 10)
    for kink in curves.get(activation.curve).kinks:
        x = torch.where((x - kink).abs() < 0.01, kink + 0.02, x)
    x = x.to(dtype)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    for laid in (x.transpose(0, 2), channels_last, x[..., ::2], x[:0], x.flatten()[0]):
        leaf = laid.clone().requires_grad_()
        y, expected = activation.ours(leaf), activation.theirs(leaf.detach())
        assert torch.equal(bits_of(y), bits_of(expected)) and y.stride() == expected.stride()
        grad = torch.randn_like(y)
        y.backward(grad)
        alone = gradient(activation.ours, laid.contiguous().flatten(), grad.contiguous().flatten())
        assert leaf.grad is not None
        # PyTorch may round an output otherwise in another layout; beside a minimum that moves the slope
        has_minimum = curves.get(activation.curve).decoder.side_bits
        moved = {torch.float32: 2e-4, torch.bfloat16: 0.06}[dtype] if has_minimum else 2e-6
        rtol = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(leaf.grad.contiguous().flatten(), alone, rtol=rtol, atol=moved)


@every_activation
def test_the_input_comes_back_where_the_slope_is_not_zero(activation: Activation) -> None:
    """What chains of norms and activations build on."""
    curve = curves.get(activation.curve)
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    found = decoders.inverse(curve, curve.forward(x), curve.left(x))
    seen = curve.derivative(x, torch).abs() > 1e-3
    for kink in curve.kinks:
        seen &= (x - kink).abs() > 1e-9
    torch.testing.assert_close(found[seen], x[seen], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: optiacts.elu(x, -0.5), lambda x: F.elu(x, -0.5)),
        (lambda x: optiacts.celu(x, -0.5), lambda x: F.celu(x, -0.5)),
        (lambda x: optiacts.leaky_relu(x, -0.1), lambda x: F.leaky_relu(x, -0.1)),
        (lambda x: optiacts.leaky_relu(x, 0.0), lambda x: F.leaky_relu(x, 0.0)),
        (lambda x: optiacts.softplus(x, 1.0, 2.0), lambda x: F.softplus(x, 1.0, 2.0)),
        (lambda x: optiacts.softshrink(x, 0.0), lambda x: F.softshrink(x, 0.0)),
        (lambda x: optiacts.hardshrink(x, -1.0), lambda x: F.hardshrink(x, -1.0)),
        (lambda x: optiacts.threshold(x, 0.5, 2.0), lambda x: F.threshold(x, 0.5, 2.0)),
        (lambda x: optiacts.swish(x, -1.0), lambda x: x * torch.sigmoid(-1.0 * x)),
        (lambda x: optiacts.swish(x, torch.tensor(1.3)), lambda x: x * torch.sigmoid(1.3 * x)),
        (lambda x: optiacts.elu(x, float("nan")), lambda x: F.elu(x, float("nan"))),
    ],
)
def test_numbers_out_of_the_safe_range_mean_pytorch(ours, theirs) -> None:
    x, grad = torch.randn(500), torch.randn(500)
    torch.testing.assert_close(gradient(ours, x, grad), gradient(theirs, x, grad), rtol=0, atol=0, equal_nan=True)
    assert not type(ours(x.requires_grad_()).grad_fn).__name__.startswith("OptiActs")


def test_what_pytorch_keeps_already_is_pytorch_s_op() -> None:
    for name in ("relu", "sigmoid", "tanh", "exp"):
        y = optiacts.activation(torch.randn(9, requires_grad=True), name)
        assert not type(y.grad_fn).__name__.startswith("OptiActs")
    for act in (optiacts.ELU(inplace=True), optiacts.SELU(True), optiacts.LeakyReLU(inplace=True)):
        leaf = torch.randn(9, requires_grad=True)
        assert not type(act(leaf * 1).grad_fn).__name__.startswith("OptiActs")
    for act in (
        optiacts.ReLU6(inplace=True),
        optiacts.Hardtanh(inplace=True),
    ):  # of these it keeps a copy of the input
        assert type(act(leaf * 1).grad_fn).__name__.startswith("OptiActs")


def test_compiled_they_hold_their_output_alone() -> None:
    torch.compiler.reset()
    kinds = [
        optiacts.ELU(0.3),
        optiacts.Hardswish(),
        optiacts.Softplus(),
        optiacts.ReLUSquared(),
        optiacts.Swish(1.3),
    ]
    model = nn.Sequential(*(layer for kind in kinds for layer in (nn.Linear(32, 32), kind)), nn.Linear(32, 32))
    x = torch.randn(ROWS, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    size = ROWS * 32 * 4
    memory = saved_memory(compiled, x)
    assert memory.bytes - x.nbytes == len(kinds) * size + 2 * size // 32
    grads = torch.autograd.grad(memory.output.square().sum(), list(model.parameters()))
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["relu_squared", "softshrink(lambd=0.5)", "hardshrink(lambd=0.3)"])
def test_a_dropout_behind_needs_no_mask(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(64, 128).to(dtype).requires_grad_()
    torch.manual_seed(3)
    memory = saved_memory(lambda: optiacts.activation_dropout(x, name, 0.25))
    y = memory.output
    torch.manual_seed(3)
    expected = F.dropout(curves.get(name).forward(x.detach()), 0.25)
    assert torch.equal(y, expected) and memory.bytes == y.nbytes
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    truth = true_derivative(curves.get(name), x.detach()) * (y != 0) / 0.75
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(slope.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu_squared", "softplus", "elu", "hardswish", "relu6"])
def test_as_gates(name: str, dtype: torch.dtype) -> None:
    """The product's bits, its bytes, and gradients within the contract of gated products."""
    curve = curves.get(name)
    generator = torch.Generator().manual_seed(0)
    gate, up, grad = (torch.randn(64, 512, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
    memory = saved_memory(lambda: optiacts.gated(*leaves, name))
    h = memory.output
    assert torch.equal(bits_of(h), bits_of(curve.forward(gate) * up))
    planes = 1 + curve.decoder.side_bits
    edges = 2 * dtype.itemsize
    assert memory.bytes == 2 * h.nbytes + planes * h.numel() // 8 + edges
    ours = torch.autograd.grad(h, leaves, grad)
    theirs = torch.autograd.grad(curve.forward(leaves[0]) * leaves[1], leaves, grad)
    g, u, d = gate.double(), up.double(), grad.double()
    exact = d * u * curve.derivative(g, torch), d * curve.function(g, torch)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        error, due = ((found.double() - truth).norm() / truth.norm() for found in (mine, other))
        # a slope of exactly 1 leaves PyTorch one rounding, where we have that of h and our own: 2 ** 0.5
        most = 1.5 if name in ("elu", "relu6") else 1.1
        assert error <= (most * due if dtype in SIXTEEN_BIT else 1e-6), (error, due)


def test_a_gate_of_zero_still_tells_up() -> None:
    """tanh(0) = 0 with a slope of 1: the slot holds up there, on every backend."""
    for dtype in DTYPES:
        gate, up = torch.zeros(64, dtype=dtype, requires_grad=True), torch.linspace(1, 2, 64).to(dtype)
        optiacts.gated(gate, up, "tanh").sum().backward()
        assert gate.grad is not None and torch.equal(gate.grad, up)


@every_activation
def test_eager_and_the_chosen_backend_agree(activation: Activation) -> None:
    from optiacts import backends

    curve = curves.get(activation.curve)
    for dtype in (torch.float32, *SIXTEEN_BIT):
        x = torch.randn(40, 37).mul(4).to(dtype)
        chosen = backends.select(x, curve)
        y, bits = chosen.activation_forward(x, curve, [])
        other = backends.eager.activation_forward(x, curve, [])
        assert torch.equal(bits_of(y), bits_of(other[0])) and torch.equal(bits, other[1])
        grad = torch.randn_like(y)
        ours, theirs = (backend.activation_backward(grad, y, bits, curve) for backend in (chosen, backends.eager))
        # in float32 a curve with one minimum is read from other coefficients, and each may err by the contract's 2e-6
        by_lines = dtype is torch.float32 and isinstance(curve.decoder, curves.Unimodal)
        apart = 4e-6 * grad.abs() if by_lines else torch.full_like(grad, 1e-6)
        assert ((ours - theirs).abs() <= apart + 4 * torch.finfo(dtype).eps * theirs.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_squared_passes_nothing_where_it_is_zero(dtype: torch.dtype) -> None:
    x = torch.cat([-torch.rand(1000), torch.zeros(3)]).to(dtype)
    assert not gradient(optiacts.relu_squared, x, torch.ones_like(x)).any()
    x = torch.tensor([1e-8, 3e-6, 1e-3, 2.0], dtype=torch.float32)
    torch.testing.assert_close(gradient(optiacts.relu_squared, x, torch.ones_like(x)), 2 * x, rtol=2e-7, atol=1e-9)
