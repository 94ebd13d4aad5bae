"""What a compiler on a GPU is given in place of our ops: as exact as the ops, and nothing of them is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import optiacts
from optiacts import curves
from optiacts.accuracy import errors_against_floors
from optiacts.backends import eager, eager_chain, traced, traced_chain
from optiacts.curves import Curve
from optiacts.decoders import arithmetic, decode
from optiacts.ops import chain_compiled, library
from optiacts.packing import pack
from tests import test_checkpointing
from tests.compilers import without_kernels
from tests.kernels import DTYPES, HALVES, named
from tests.samples import around_minimum, every_finite, float32_bit_space, true_derivative
from tests.test_native_chain import CLOSED, KINDS, saved

CURVES = [curve for curve in map(curves.get, curves.every_name()) if traced.serves(curve, torch.float32)]
UNIMODAL = list(curves.unimodal().values())
# Relative errors, those of tests/gpu. Chains: beside plain steps, which decode 16 bits by a table.
MOST_GATED = {torch.bfloat16: 5e-3, torch.float16: 6e-4, torch.float32: 1e-6}
MOST = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 1e-5}
GPU_SLACK = 1.3  # on the floors of the 16-bit decode, as kernels on a GPU have


@pytest.mark.parametrize("dtype", HALVES, **named)
@pytest.mark.parametrize("curve", UNIMODAL, **named)
def test_every_16_bit_input_is_decoded_within_the_contract(curve: Curve, dtype: torch.dtype) -> None:
    x = every_finite(dtype)
    y, left = curve.forward(x), curve.left(x)
    e = errors_against_floors(curve, x, y, arithmetic.slope(y.float(), left, curve, dtype).double())
    assert e.worst <= GPU_SLACK * e.worst_floor
    assert e.rms <= GPU_SLACK * e.rms_floor


@pytest.mark.parametrize("curve", UNIMODAL, **named)
def test_float32_is_decoded_as_by_plain_operations(curve: Curve) -> None:
    x = torch.cat([float32_bit_space(20011), torch.linspace(-15, 15, 200_001), around_minimum(curve, width=20_000)])
    y, left = curve.forward(x), curve.left(x)
    ours, due = (d.double() - true_derivative(curve, x) for d in (_slope(y, left, curve), decode(y, left, curve)))
    far = (x.double() - curve.x_min).abs() > 0.1
    assert ours.abs()[far].max() <= max(2e-6, 1.1 * float(due.abs()[far].max()))
    assert ours.abs().max() <= 1.1 * due.abs().max()


def _slope(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    return arithmetic.slope(y, left, curve, y.dtype)


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("curve", CURVES, **named)
def test_slopes_of_activations_are_eagers(curve: Curve, dtype: torch.dtype) -> None:
    """Of infinite and subnormal numbers too."""
    x = _numbers(dtype)
    y, bits = eager.activation_forward(x, curve, ())
    ours, due = (b.activation_backward(torch.ones_like(x), y, bits, curve) for b in (traced, eager))
    assert ours.dtype is dtype and torch.equal(ours.isfinite(), due.isfinite())
    assert _error(ours, x, curve) <= (1.01 if dtype is torch.float32 else GPU_SLACK) * _error(due, x, curve)


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("curve", [c for c in CURVES if c.decoder.side_bits or c.decoder.survives_dropout], **named)
def test_slopes_behind_a_dropout(curve: Curve, dtype: torch.dtype) -> None:
    """0 where it dropped. Elsewhere 1.3 times the error without it, which is the contract, or what eager's is."""
    x, scale = _numbers(dtype), 1.25
    y, bits = eager.activation_forward(x, curve, ())
    dropped = torch.rand(x.shape) < 0.2
    behind = (y * scale).masked_fill(dropped, 0.0)
    bits_behind = bits | pack(dropped) if curve.decoder.side_bits else bits
    ones, kept = torch.ones_like(x), ~dropped
    ours, due = (b.activation_backward(ones, behind, bits_behind, curve, scale) for b in (traced, eager))
    assert not ours[dropped].any()
    error, eagers = (_error((slope.double() / scale)[kept], x[kept], curve) for slope in (ours, due))
    plain = _error(traced.activation_backward(ones, y, bits, curve)[kept], x[kept], curve)
    assert error <= max(1.3 * plain, 1.05 * eagers) + 2e-7


def _numbers(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    return torch.cat([torch.randn(20_000) * 3, torch.tensor([0.0, -0.0, 1e-30, -1e-6, 300, -300, torch.inf])]).to(
        dtype
    )


def _error(slope: Tensor, x: Tensor, curve: Curve) -> Tensor:
    """RMS, over finite inputs."""
    seen = x.isfinite()
    return (slope.double() - true_derivative(curve, x))[seen].square().mean().sqrt()


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("name", [*curves.unimodal(), "relu", "sigmoid"])
def test_gated_products_keep_what_eager_keeps(name: str, dtype: torch.dtype) -> None:
    """To the bit, corners included. Their gradients err no more than those of the kernels for GPUs."""
    curve = curves.get(name)
    corners = torch.tensor([0.0, -0.0, 1e-30, -1e-6, 0.5, -0.75, -40, 300, 6e4, 3e38, -3e38, torch.inf, torch.nan])
    grid = torch.cartesian_prod(corners, corners)
    gate, up = (torch.cat([torch.randn(4096) * 2, edge]).to(dtype) for edge in grid.T)
    ours, due = (b.gated_forward(gate, up, curve) for b in (traced, eager))
    for mine, theirs in zip(ours, due, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    grad = torch.randn(gate.shape).to(dtype)
    found = torch.empty(2, *gate.shape, dtype=dtype)
    wanted = torch.empty_like(found)
    traced.gated_backward(grad, *ours, curve, *found)
    eager.gated_backward(grad, *ours, curve, *wanted)
    finite = gate.isfinite() & up.isfinite()
    assert torch.equal(found[:, finite].isnan(), wanted[:, finite].isnan())

    x, u, g = (t[:4096].double() for t in (gate, up, grad))
    exact = torch.stack([g * u * true_derivative(curve, x), g * curve.function(x, torch)])
    assert ((found[:, :4096].double() - exact).norm(dim=1) <= MOST_GATED[dtype] * exact.norm(dim=1)).all()


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels last"])
@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_of_chains_are_eagers(kind: tuple[str, int, bool], dtype: torch.dtype, last: bool) -> None:
    torch.manual_seed(0)
    for curve in ("silu", "mish", *CLOSED):
        given = saved(curve, dtype, kind, (2, 32, 70), last, rescues=False)
        grad = torch.randn(given.y.shape).to(dtype)
        for ours, due in zip(
            traced_chain.chain_backward(grad, given, dtype),
            eager_chain.chain_backward(grad, given, dtype),
            strict=True,
        ):
            assert ours.dtype is due.dtype
            assert (ours.double() - due.double()).norm() <= MOST[dtype] * due.double().norm(), curve


# Compiled. A CPU is taken for a GPU, so that its compiler gets what a GPU's would.


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(library, "traceable", lambda device: device.type != "meta")
    monkeypatch.setattr(chain_compiled, "_told", lambda tensor: False)
    torch.compiler.reset()
    optiacts.norm_weights_changed()
    yield
    torch.compiler.reset()
    optiacts.norm_weights_changed()


@pytest.mark.parametrize("dtype", HALVES, **named)
def test_rounding_is_not_lost_in_fused_code(dtype: torch.dtype) -> None:
    """Over all float32 numbers: a compiler that keeps what it has fused in float32 would leave it out."""
    x = torch.cat([float32_bit_space(997), torch.tensor([torch.inf, -torch.inf, torch.nan, 65519.9, 65520.0])])

    def squared(x: Tensor, rounds: Callable[[Tensor], Tensor]) -> Tensor:
        return rounds((x * 1.0009765625).to(dtype)).float() - x

    torch.compiler.reset()
    found, due = torch.compile(squared, fullgraph=True)(x, traced.rounded), squared(x, lambda rounded: rounded)
    torch.testing.assert_close(found, due, rtol=0, atol=0, equal_nan=True)


class Layers(nn.Module):
    """Of everything one, each between two matrix products."""

    def __init__(self, width: int = 64, inner: int = 128) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(width, inner, bias=False) for _ in range(6))
        self.second = nn.ModuleList(nn.Linear(inner, width, bias=False) for _ in range(5))
        self.norm, self.other = nn.LayerNorm(width), nn.RMSNorm(width)
        for norm in (self.norm, self.other):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, -0.3, 0.3)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        gelu, softplus = nn.functional.gelu, nn.functional.softplus
        x = x + self.second[0](gelu(self.first[0](self.norm(x))))
        x = x + self.second[1](nn.functional.silu(self.first[1](x)) * self.first[2](self.other(x)))
        x = x + self.second[2](softplus(self.first[3](x)))
        x = x + self.drop(self.second[3](self.drop(gelu(self.first[4](x), approximate="tanh"))))
        return x + self.second[4](self.first[5](x).clamp(-0.5, 0.5))


class Convolutions(nn.Module):
    """Norms and activations in one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(16, 16, 1, bias=False) for _ in range(3))
        self.norm, self.other = nn.BatchNorm2d(16), nn.GroupNorm(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.norm(self.first(x)))
        y: Tensor = self.last(nn.functional.mish(self.other(self.second(x))))
        return y


def _trained(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[int, Tensor]:
    """The bytes that are held, and all gradients."""
    model.zero_grad()
    torch.manual_seed(1)
    held = optiacts.saved_memory(run, x)
    held.output.float().square().mean().backward()
    return held.bytes, torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("model", [Layers, Convolutions], ids=["layers", "convolutions"])
def test_held_and_gradients_are_those_of_the_ops(
    model: type[nn.Module], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler sees is held no more of than what it does not see, and is as good."""
    torch.manual_seed(0)
    net = model().to(dtype)
    x = torch.randn(256, 64) if model is Layers else torch.randn(8, 16, 16, 16)
    x = x.to(dtype).requires_grad_()
    optiacts.convert(net)
    seen = _trained(net, torch.compile(net, backend=without_kernels, fullgraph=True), x)
    monkeypatch.setattr(library, "traceable", lambda device: False)
    torch.compiler.reset()
    opaque = _trained(net, torch.compile(net, backend=without_kernels, fullgraph=True), x)
    assert seen[0] <= opaque[0]
    # of one another as far as each of what is exact
    most = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1.2e-3}[dtype]
    assert (seen[1] - opaque[1]).norm() <= most * opaque[1].norm()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("model", [Layers, Convolutions], ids=["layers", "convolutions"])
def test_nothing_is_left_of_the_ops_but_looks_at_weights(model: type[nn.Module]) -> None:
    """In Inductor's own code, in bfloat16, where it rounds nothing that it has fused: gradients beside float64."""
    torch.manual_seed(0)
    net = model()
    x = torch.randn(256, 64) if model is Layers else torch.randn(8, 16, 16, 16)
    for dropout in (m for m in net.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    truth = _trained(net.double(), net, x.double().requires_grad_())[1]
    net.bfloat16()
    theirs = _trained(net, net, x.bfloat16().requires_grad_())[1]
    optiacts.convert(net)
    found: dict[str, Any] = {}

    def step() -> None:
        found["gradients"] = _trained(net, torch.compile(net, fullgraph=True), x.bfloat16().requires_grad_())[1]

    _, code = run_and_get_code(step)
    left = set(re.findall(r"optiacts\.(\w+)\.default\(", "".join(code)))
    assert left <= {"norm_factors", "chain_factors"}
    error, due = ((g - truth).norm() / truth.norm() for g in (found["gradients"], theirs))
    assert error <= 1.1 * due


@pytest.mark.usefixtures("as_on_a_gpu")
def test_sizes_that_change_compile_once_more() -> None:
    net, sizes = Layers(), (64, 57, 33, 90)
    optiacts.convert(net)
    compiled = torch.compile(net, dynamic=True, fullgraph=True, backend=without_kernels)
    net.drop.p = 0.0

    def gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(run(x).square().sum(), list(net.parameters()))])

    for rows in sizes:
        x = torch.randn(rows, 64)
        found, due = gradient(compiled, x), gradient(net, x)
        assert (found - due).norm() <= 1e-5 * due.norm()


def test_an_environment_that_names_a_backend_keeps_the_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    from optiacts.backends import selection

    cuda = torch.device("cuda", 0)
    assert selection.traceable(cuda) and not selection.traceable(torch.device("cpu"))
    monkeypatch.setattr(selection, "wanted", lambda: eager)
    assert not selection.traceable(cuda)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_selective_checkpointing_finds_the_ops_that_it_names() -> None:
    test_checkpointing.test_compiled_nothing_in_front_of_them_is_computed_again()
