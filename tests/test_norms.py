"""Norms that keep their output: PyTorch's result to the bit, saved bytes, and what takes PyTorch's path."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import optiacts
from optiacts import functional_norm
from optiacts.norms import Norm

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS = ["layer_norm", "layer_norm without bias", "layer_norm plain", "rms_norm", "rms_norm plain"]
ROWS, CHANNELS = 96, 256


def parameters(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    weight = (1 + 0.2 * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()
    bias = (0.1 * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()
    return None if "plain" in kind else weight, bias if kind == "layer_norm" else None


def call(
    module: Any, kind: str, x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    if kind.startswith("layer_norm"):
        return module.layer_norm(x, shape, weight, bias, 1e-5)
    return module.rms_norm(x, shape, weight, 1e-5)


def given(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(ROWS, CHANNELS), (4, 24, 8, 32), (CHANNELS,), (0, CHANNELS), (1, CHANNELS)])
def test_forward_is_pytorchs_and_gradients_are_good(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    normalized = shape[-2:] if len(shape) == 4 else shape[-1:]
    x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    weight, bias = parameters(kind, normalized, dtype)
    y = call(optiacts, kind, x, normalized, weight, bias)
    theirs = call(functional, kind, x, normalized, weight, bias)
    assert torch.equal(y, theirs)
    assert y.stride() == theirs.stride()
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    found = torch.autograd.grad(y, given(x, weight, bias), grad)
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    exact = call(functional, kind, wide[0], normalized, *wide[1:])  # type: ignore[arg-type]
    truth = torch.autograd.grad(exact, given(*wide), grad.double())
    most = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 8e-4}[dtype]
    for ours, true, of in zip(found, truth, given(x, weight, bias), strict=True):
        assert ours.dtype == dtype
        assert ours.shape == of.shape
        assert (ours.double() - true).norm() <= most * true.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    weight, bias = parameters(kind, (8,), torch.float64)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        weight, bias = (*parameters, None, None)[:2]
        return call(optiacts, kind, x, (8,), weight, bias)

    assert gradcheck(function, given(x, weight, bias))
    assert gradgradcheck(function, given(x, weight, bias))


@pytest.mark.parametrize("keep_output", [True, False])
@pytest.mark.parametrize("dead", [[], [5], list(range(128))])
def test_double_backward_with_dead_channels(dead: list[int], keep_output: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 128, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(128, dtype=torch.float64) + 0.5
    weight[dead] = 0
    bias = 0.3 * torch.randn(128, dtype=torch.float64)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return optiacts.layer_norm(x, (128,), weight, bias, keep_output=keep_output)

    inputs = (x, weight.requires_grad_(), bias.requires_grad_())
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_saved_bytes(kind: str, dtype: torch.dtype) -> None:
    """y, which the Linear keeps, is one storage with it; the rest is told in functional_norm's head."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, CHANNELS, dtype=torch.float64).to(dtype).requires_grad_()
    weight, bias = parameters(kind, (CHANNELS,), dtype)
    linear = nn.Linear(CHANNELS, CHANNELS, dtype=dtype)

    def forward(x: Tensor) -> Tensor:
        return linear(call(optiacts, kind, x, (CHANNELS,), weight, bias))

    item = dtype.itemsize
    due = ROWS * CHANNELS * item + ROWS * max(item, 4)
    due += CHANNELS * max(item, 4) * len(given(weight, bias))
    due += ROWS * CHANNELS // 4 if item == 2 else 0
    assert optiacts.saved_memory(forward, x).bytes == due + _parameter_bytes(weight, bias)


def _parameter_bytes(*parameters: Tensor | None) -> int:
    """The parameters of a function, unlike those of a module, count as held."""
    return sum(parameter.untyped_storage().nbytes() for parameter in given(*parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_bytes_of_modules(dtype: torch.dtype) -> None:
    """A LayerNorm and an RMSNorm before Linears: half of PyTorch's and less than half of a written-out norm's."""
    ours = nn.Sequential(optiacts.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS)).to(dtype)
    theirs = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS)).to(dtype)
    x = torch.randn(2048, CHANNELS, dtype=dtype, requires_grad=True)
    held, before = optiacts.saved_memory(ours, x).bytes, optiacts.saved_memory(theirs, x).bytes
    assert held <= (0.5 if dtype == torch.float32 else 0.57) * before + 2048 * 8 + 2 * CHANNELS * 4


def test_input_mode_where_output_mode_gains_nothing() -> None:
    """bfloat16 in, float32 out (a weight in float32, written out): the input is the smaller one to keep."""
    x = torch.randn(ROWS, CHANNELS, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.rand(CHANNELS, requires_grad=True)

    def forward(t: Tensor) -> Tensor:
        return weight * functional.rms_norm(t.float(), (CHANNELS,), eps=1e-5)

    def ours(t: Tensor) -> Tensor:
        return functional_norm.norm(t, weight, None, Norm(False, 1e-5), forward)

    held = optiacts.saved_memory(ours, x)
    assert held.bytes == ROWS * 4 + ROWS * CHANNELS * 2 + CHANNELS * 4
    found = torch.autograd.grad(ours(x).square().sum(), (x, weight))
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    truth = torch.autograd.grad(Norm(False, 1e-5).reference(wide[0], wide[1], None).square().sum(), wide)
    for got, true, most, dtype in zip(found, truth, (3e-3, 1e-6), (torch.bfloat16, torch.float32), strict=True):
        assert got.dtype == dtype
        assert (got.double() - true).norm() <= most * true.norm()


def test_under_autocast_the_input_is_kept() -> None:
    module = nn.Sequential(optiacts.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS))
    plain = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS))
    plain.load_state_dict(module.state_dict())
    x = torch.randn(ROWS, CHANNELS, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), plain(x))
        assert optiacts.saved_memory(module, x).bytes <= optiacts.saved_memory(plain, x).bytes


@pytest.mark.parametrize("trained", ["input", "weight", "bias", "all but the weight"])
def test_frozen_parts(trained: str) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(ROWS, CHANNELS), torch.randn(ROWS, CHANNELS)
    ours, theirs = optiacts.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
    wanted = {"input": "x", "weight": "w", "bias": "b", "all but the weight": "xb"}[trained]
    for module in (ours, theirs):
        module.weight.requires_grad_("w" in wanted)
        module.bias.requires_grad_("b" in wanted)
    gradients = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_("x" in wanted)
        module(leaf).backward(grad)
        gradients.append([leaf.grad, module.weight.grad, module.bias.grad])
    for got, due in zip(*gradients, strict=True):
        assert (got is None) == (due is None)
        if got is not None and due is not None:
            torch.testing.assert_close(got, due, rtol=1e-4, atol=1e-4)


def test_modules_are_drop_ins() -> None:
    for ours, theirs, arguments in (
        (optiacts.LayerNorm, nn.LayerNorm, {"eps": 1e-3}),
        (optiacts.LayerNorm, nn.LayerNorm, {"elementwise_affine": False}),
        (optiacts.LayerNorm, nn.LayerNorm, {"bias": False}),
        (optiacts.RMSNorm, nn.RMSNorm, {"eps": 1e-3}),
        (optiacts.RMSNorm, nn.RMSNorm, {}),
        (optiacts.RMSNorm, nn.RMSNorm, {"elementwise_affine": False}),
    ):
        mine, their = ours((4, 8), **arguments), theirs((4, 8), **arguments)
        assert isinstance(mine, theirs)
        assert mine.state_dict().keys() == their.state_dict().keys()
        assert mine.extra_repr() == their.extra_repr()
        x = torch.randn(3, 4, 8, requires_grad=True)
        assert torch.equal(mine(x), their(x))
        assert torch.equal(copy.deepcopy(mine)(x), their(x))


def node(y: Tensor) -> str:
    return "" if y.grad_fn is None else type(y.grad_fn).__name__


def test_what_takes_pytorchs_path() -> None:
    module, x = optiacts.LayerNorm(8), torch.randn(4, 8)
    assert "OptiActs" in node(module(x))
    with torch.no_grad():
        assert module(x).grad_fn is None
    with torch.inference_mode():
        module(x)
    module.requires_grad_(False)
    assert module(x).grad_fn is None
    module.requires_grad_(True)
    vmapped = torch.func.vmap(lambda row: optiacts.layer_norm(row, (8,), module.weight))(x)
    torch.testing.assert_close(vmapped, functional.layer_norm(x, (8,), module.weight))
    plain = torch.func.jvp(lambda t: functional.layer_norm(t, (8,)), (x,), (x,))
    assert all(map(torch.equal, torch.func.jvp(lambda t: optiacts.layer_norm(t, (8,)), (x,), (x,)), plain))
    grad = torch.func.grad(lambda t: optiacts.rms_norm(t, (8,)).square().mean())(x)
    assert torch.equal(grad, torch.func.grad(lambda t: functional.rms_norm(t, (8,)).square().mean())(x))
    exported = torch.export.export(module, (x,))
    assert "optiacts" not in str(exported.graph)
    scripted = torch.jit.trace(module, (x,))
    assert torch.equal(scripted(x), module(x))


def test_errors_are_pytorchs() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    for function in (optiacts.layer_norm, functional.layer_norm):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            function(x, (7,))
    for function in (optiacts.rms_norm, functional.rms_norm):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            function(x, (7,))
    with pytest.raises(RuntimeError):
        optiacts.layer_norm(x, (8,), torch.ones(9, requires_grad=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant: bool) -> None:
    torch.manual_seed(0)
    module, x = optiacts.LayerNorm(CHANNELS), torch.randn(ROWS, CHANNELS, requires_grad=True)
    module(x).square().sum().backward()
    due = x.grad
    x.grad = None
    checkpoint(module, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, due)


def test_an_output_changed_in_place_is_an_error() -> None:
    x = torch.randn(ROWS, CHANNELS, requires_grad=True)
    y = optiacts.LayerNorm(CHANNELS)(x)
    y += 1
    with pytest.raises(optiacts.OverwrittenError, match="in place"):
        y.sum().backward()


def test_an_input_changed_in_place_afterwards_is_fine() -> None:
    torch.manual_seed(0)
    module, x = optiacts.LayerNorm(CHANNELS), torch.randn(ROWS, CHANNELS)
    gradients = []
    for change in (False, True):
        leaf = x.clone().requires_grad_()
        h = leaf * 1
        y = module(h)
        if change:
            h.zero_()
        gradients.append(torch.autograd.grad(y.square().sum(), leaf)[0])
    assert torch.equal(*gradients)


def test_second_derivatives_on_fake_tensors() -> None:
    """As of a report: there are no values to look at."""
    with FakeTensorMode():
        module, x = optiacts.LayerNorm(CHANNELS), torch.randn(ROWS, CHANNELS, requires_grad=True)
        (grad,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        grad.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape


def test_channels_first_and_offset() -> None:
    """A norm over dimension 1, and one whose weight is an offset from 1."""
    torch.manual_seed(0)
    x = torch.randn(2, 64, 5, 6, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.rand(64, dtype=torch.float64).requires_grad_(), torch.rand(64, dtype=torch.float64)
    kind = Norm(True, 1e-6, channels_first=True, offset=1.0)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        def forward(t: Tensor) -> Tensor:
            centred = t - t.mean(1, keepdim=True)
            normal = centred * (centred.square().mean(1, keepdim=True) + 1e-6).rsqrt()
            return normal * (1 + weight)[:, None, None] + bias[:, None, None]

        return functional_norm.norm(x, weight, bias, kind, forward)

    inputs = (x, weight, bias.requires_grad_())
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)
