"""GLU, the clamped SwiGLU of GPT-OSS, ReGLU with a square, and the clamp that keeps bits."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optiacts

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def clamped(gate: Tensor, up: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """As transformers evaluates it."""
    gate = gate.clamp(min=None, max=limit)
    up = up.clamp(min=-limit, max=limit)
    glu = gate * torch.sigmoid(gate * alpha)
    return (up + 1) * glu


def drawn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype).requires_grad_()


def bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize])


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    "bounds", [(None, 7.0), (-7.0, 7.0), (0.1, None), (-0.1, 0.1), (2.0, 1.0), (float("nan"), 1)]
)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_clamp_is_pytorchs_to_the_bit(dtype: torch.dtype, bounds: tuple[float | None, float | None]) -> None:
    """Values and gradients: at the bounds, beyond them, of NaN and of infinite gradients."""
    torch.manual_seed(0)
    special = torch.tensor([7.0, -7.0, 0.1, -0.1, 2.0, 1.0, torch.nan, torch.inf, -torch.inf, 0.0, -0.0])
    x = torch.cat([torch.randn(50) * 7, special]).to(dtype).requires_grad_()
    grad = torch.randn(61).to(dtype)
    grad[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    ours, theirs = optiacts.clamp(x, *bounds), torch.clamp(x, *bounds)
    assert torch.equal(bits(ours), bits(theirs))
    found, due = (torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs))
    assert torch.equal(bits(found), bits(due))


def test_clamp_keeps_bits() -> None:
    x = drawn(5, 20, dtype=torch.float32)
    saved = optiacts.saved_memory(lambda t: optiacts.clamp(t * 1, -1, 1), x)
    assert saved.bytes == 5 * 3  # 20 bits are 3 bytes
    assert optiacts.saved_memory(lambda t: torch.clamp(t * 1, -1, 1), x).bytes == x.nbytes
    with pytest.raises(RuntimeError, match="At least one of"):
        optiacts.clamp(x)
    bound = torch.ones(20)
    assert torch.equal(optiacts.clamp(x, bound), torch.clamp(x, bound))  # a tensor: PyTorch's own op


@pytest.mark.parametrize("layout", ["plain", "interleaved"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamped_swiglu(dtype: torch.dtype, layout: str) -> None:
    """The forward to the bit; gradients as near to exact ones as PyTorch's, and exactly 0 beyond the clamps."""
    torch.manual_seed(1)
    both = drawn(64, 2 * 200, dtype=dtype, scale=4.0)
    with torch.no_grad():
        both[0, :8] = torch.tensor([7.0, 7.0, -7.0, -7.0, 7.5, -7.5, 6.5, 7.5])
    gate, up = (both[..., ::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    ours = optiacts.clamped_swiglu(both) if layout == "interleaved" else optiacts.clamped_swiglu(gate, up)
    theirs = clamped(gate, up)
    assert torch.equal(bits(ours), bits(theirs))
    grad = torch.randn_like(ours)
    found, due = (torch.autograd.grad(y, both, grad)[0] for y in (ours, theirs))
    wide = both.detach().double().requires_grad_()
    halves = (wide[..., ::2], wide[..., 1::2]) if layout == "interleaved" else wide.chunk(2, dim=-1)
    (exact,) = torch.autograd.grad(clamped(*halves), wide, grad.double())
    at_bound = both.detach().abs() == 7
    assert at_bound.sum() >= 4 and bool((found[at_bound] != 0).all())
    assert bool((exact == 0).any()) and not found[exact == 0].any()  # beyond the bounds
    most = 1e-6 if dtype is torch.float32 else 1.1 * relative_error(due, exact)
    assert relative_error(found, exact) <= most


def test_clamped_swiglu_by_pytorchs_checker() -> None:
    gate, up = (drawn(2, 3, dtype=torch.float64, scale=2.0) for _ in range(2))
    for alpha in (1.702, 1.3):
        function = functools.partial(optiacts.clamped_swiglu, alpha=alpha, limit=1.5)
        assert torch.autograd.gradcheck(function, (gate, up))
        assert torch.autograd.gradgradcheck(function, (gate, up))


@pytest.mark.parametrize("alpha", [1.702, 1.0, 0.01], ids=["quick_gelu", "swish", "PyTorch's own"])
def test_clamped_swiglu_of_any_numbers(alpha: float) -> None:
    gate, up = (drawn(3, 8, dtype=torch.float32, scale=3.0) for _ in range(2))
    assert torch.equal(optiacts.clamped_swiglu(gate, up, alpha, 2.0), clamped(gate, up, alpha, 2.0))


class Projected(nn.Module):
    """A fused projection, a product, and a projection that keeps it."""

    def __init__(self, product: nn.Module, hidden: int = 256, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 2 * hidden, bias=False, dtype=dtype)
        self.product = product
        self.down = nn.Linear(hidden, 16, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.product(self.inner(x)))


class GptOss(nn.Module):
    """The gate of transformers' GptOssExperts."""

    alpha, limit = 1.702, 7.0

    def forward(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        gate = gate.clamp(min=None, max=self.limit)
        up = up.clamp(min=-self.limit, max=self.limit)
        glu = gate * torch.sigmoid(gate * self.alpha)
        gated_output = (up + 1) * glu
        return gated_output


class ByChunks(nn.Module):
    """The same through other names, and with functions in place of methods."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        linear = torch.clamp(b, -7.0, 7.0) + 1
        a = torch.clamp_max(a, 7.0)
        return a * torch.sigmoid(1.702 * a) * linear


class BySplit(nn.Module):
    """A SwiGLU with clamps, all in one expression."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, x.shape[-1] // 2, dim=-1)
        return F.silu(a.clamp(max=3.0)) * b.clip(-3.0, 3.0)


def swiglu_of_openai(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    x_glu, x_linear = x[..., ::2], x[..., 1::2]
    x_glu = x_glu.clamp(min=None, max=limit)
    x_linear = x_linear.clamp(min=-limit, max=limit)
    out_glu = x_glu * torch.sigmoid(alpha * x_glu)
    return out_glu * (x_linear + 1)


class ByParameters(nn.Module):
    """As OpenAI's own code has it: the numbers are parameters of a function."""

    def forward(self, x: Tensor) -> Tensor:
        return swiglu_of_openai(x, limit=3.0)


def trained(model: nn.Module, x: Tensor) -> list[Tensor]:
    y = model(x)
    y.square().sum().backward()
    found = [y.detach(), *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    return found


@pytest.mark.parametrize("product", [GptOss, ByChunks, BySplit, ByParameters])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convert_finds_clamped_products(product: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    model, x = Projected(product(), dtype=dtype), (torch.randn(64, 16) * 12).to(dtype)
    before, due = optiacts.saved_memory(model, x).bytes, trained(model, x)
    optiacts.convert(model, norms=False)
    found = trained(model, x)
    tensor = 64 * 256 * dtype.itemsize
    # h and a slot, four bits per element and two edges of one element; PyTorch holds up to 7 tensors
    held = x.nbytes + 2 * tensor + 4 * 64 * 256 // 8 + 2 * dtype.itemsize
    assert optiacts.saved_memory(model, x).bytes == held < before - 2 * tensor
    assert torch.equal(found[0], due[0])
    tolerance = 1e-4 if dtype is torch.float32 else 3e-2
    for ours, theirs in zip(found[1:], due[1:], strict=True):
        assert relative_error(ours, theirs.double()) <= tolerance


def test_clamps_of_other_kinds_stay_pytorchs() -> None:
    """A bound that is a tensor, an input without a gradient, a number that is changed after the conversion."""
    torch.manual_seed(3)
    model, x = Projected(GptOss()), torch.randn(8, 16) * 12
    optiacts.convert(model, norms=False)
    for limit in (torch.tensor(2.0), 3.0):
        model.product.limit = limit
        with torch.no_grad():
            due = clamped(*(model.inner(x)[..., k::2] for k in (0, 1)), limit=limit)  # type: ignore[arg-type]
            assert torch.equal(model.product(model.inner(x)), due)
        assert torch.equal(model.product(model.inner(x)), due)
    model.product.alpha = 1.0
    assert torch.equal(model.product(model.inner(x)), clamped(*(model.inner(x)[..., k::2] for k in (0, 1)), 1.0, 3.0))


def test_numbers_of_a_function_are_looked_at_when_it_runs() -> None:
    class Varied(nn.Module):
        alpha: object = 1.702

        def forward(self, x: Tensor) -> Tensor:
            return swiglu_of_openai(x, self.alpha)  # type: ignore[arg-type]

    torch.manual_seed(4)
    model, x = Projected(Varied()), torch.randn(8, 16) * 12
    plain = swiglu_of_openai
    optiacts.convert(model, norms=False)
    for alpha in (1.702, 1.5, 2, torch.tensor(1.702), torch.randn(256)):
        model.product.alpha = alpha
        assert torch.equal(model.product(model.inner(x)), plain(model.inner(x), alpha))  # type: ignore[arg-type]


def test_compiled_clamps_keep_bits() -> None:
    torch.manual_seed(5)
    model, x = Projected(GptOss()), torch.randn(64, 16) * 12
    due = trained(model, x)
    optiacts.convert(model, norms=False)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert optiacts.saved_memory(compiled, x).bytes <= x.nbytes + 2 * 64 * 256 * 4 + 4 * 64 * 256 // 8 + 8
    for ours, theirs in zip(trained(compiled, x), due, strict=True):
        assert relative_error(ours, theirs.double()) <= 1e-4


@pytest.mark.parametrize("dim", [-1, 1, 0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_glu(dtype: torch.dtype, dim: int) -> None:
    """The output to the bit; the gradients within PyTorch's errors."""
    torch.manual_seed(6)
    x = drawn(16, 64, 128, dtype=dtype)
    ours, theirs = optiacts.glu(x, dim), F.glu(x, dim)
    assert torch.equal(bits(ours), bits(theirs))
    grad = torch.randn_like(ours)
    found, due = (torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs))
    wide = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(F.glu(wide, dim), wide, grad.double())
    for ours, theirs, true in zip(*(t.chunk(2, dim) for t in (found, due, exact)), strict=True):
        assert relative_error(ours, true) <= 1.2 * relative_error(theirs, true)


def test_glu_by_pytorchs_checkers() -> None:
    x = drawn(3, 4, 6, dtype=torch.float64)
    for dim in (-1, 1):
        function = functools.partial(optiacts.glu, dim=dim)
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)
    found, due = (torch.func.grad(lambda t: f(t).square().sum())(x.detach()) for f in (optiacts.glu, F.glu))  # noqa: B023
    torch.testing.assert_close(found, due)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_glu_where_numbers_end(dtype: torch.dtype) -> None:
    """Infinite, overflown and vanished halves have the gradients that PyTorch's have."""
    values = [0.0, -0.0, 1.0, -2.0, 200.0, -200.0, 1e-7, 6e4, torch.inf, -torch.inf, torch.nan]
    x = torch.cartesian_prod(*2 * [torch.tensor(values)]).T.flatten().to(dtype).requires_grad_()
    found, due = (torch.autograd.grad(f(x).sum(), x)[0] for f in (optiacts.glu, F.glu))
    torch.testing.assert_close(found, due, equal_nan=True)


def test_glu_keeps_its_output_and_a_half() -> None:
    x = torch.randn(64, 16)
    for product, tensors in ((nn.GLU(), 3), (optiacts.GLU(), 2)):
        saved = optiacts.saved_memory(Projected(product), x)
        assert saved.bytes == x.nbytes + tensors * 64 * 256 * 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reglu_squared(dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    gate, up = (drawn(64, 200, dtype=dtype) for _ in range(2))
    ours, theirs = optiacts.reglu_squared(gate, up), F.relu(gate).square() * up
    assert torch.equal(bits(ours), bits(theirs))
    grad = torch.randn_like(ours)
    found, due = (torch.autograd.grad(y, (gate, up), grad) for y in (ours, theirs))
    wide = [t.detach().double().requires_grad_() for t in (gate, up)]
    exact = torch.autograd.grad(F.relu(wide[0]).square() * wide[1], wide, grad.double())
    for ours, theirs, true in zip(found, due, exact, strict=True):
        most = 1e-6 if dtype is torch.float32 else 1.1 * relative_error(theirs, true)
        assert relative_error(ours, true) <= most
    tensor = 64 * 256 * 4
    saved = optiacts.saved_memory(Projected(optiacts.ReGLUSquared()), torch.randn(64, 16))
    assert saved.bytes <= 64 * 16 * 4 + 2 * tensor + 64 * 256 // 8 + 8


def test_modules_are_their_functions() -> None:
    x = drawn(4, 32, dtype=torch.float32, scale=3.0)
    assert torch.equal(optiacts.ClampedSwiGLU(limit=2.0)(x), optiacts.clamped_swiglu(x, limit=2.0))
    assert torch.equal(optiacts.ReGLUSquared()(*x.chunk(2, -1)), optiacts.reglu_squared(x))
    assert torch.equal(optiacts.GLU(0)(x), F.glu(x, 0)) and isinstance(optiacts.GLU(), nn.GLU)
    assert repr(optiacts.ClampedSwiGLU()) == "ClampedSwiGLU(alpha=1.702, limit=7.0)"
    with pytest.raises(ValueError, match="even last dimension"):
        optiacts.clamped_swiglu(torch.ones(3))
    with pytest.raises(RuntimeError, match="must be even"):
        optiacts.glu(drawn(3, 5, dtype=torch.float32))


class ByFunction(nn.Module):
    """GLU as a function, over another dimension than the last."""

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(x.transpose(0, 1), dim=0).transpose(0, 1)


class InTwoSteps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * torch.sigmoid(gate)


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.relu(gate).square() * up


@pytest.mark.parametrize(
    ("product", "what", "bits"),
    [
        (nn.GLU, "glu", 0),
        (ByFunction, "glu", 0),
        (InTwoSteps, "sigmoid gate", 1),
        (SquaredReLU, "relu_squared gate", 1),
    ],
)
def test_convert_finds_other_products(product: type[nn.Module], what: str, bits: int) -> None:
    torch.manual_seed(8)
    model, x = Projected(product()), torch.randn(64, 16) * 3
    before, due = optiacts.saved_memory(model, x).bytes, trained(model, x)
    report = optiacts.convert(model)
    assert [entry.what for entry in report.converted] == [what] and not report.left
    tensor = 64 * 256 * 4
    assert optiacts.saved_memory(model, x).bytes <= x.nbytes + 2 * tensor + bits * 64 * 256 // 8 + 8
    assert before >= x.nbytes + 3 * tensor
    found = trained(model, x)
    assert torch.equal(found[0], due[0])
    for ours, theirs in zip(found[1:], due[1:], strict=True):
        assert relative_error(ours, theirs.double()) <= 1e-5
    copied = pickle.loads(pickle.dumps(model))
    assert optiacts.saved_memory(copied, x).bytes == optiacts.saved_memory(model, x).bytes
    optiacts.revert(model)
    assert optiacts.saved_memory(model, x).bytes == before


def test_a_glu_whose_output_nobody_keeps_holds_no_more_than_before() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 4).requires_grad_(False))
    report = optiacts.convert(model, example_inputs=torch.randn(2, 4))
    assert report.saved_bytes is not None and report.saved_bytes[1] <= report.saved_bytes[0]
