"""Dropout, alone and behind activations and gated products: PyTorch's bits and draws, exact masks, saved bytes."""

import functools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import optiacts
from optiacts import curves, ops, saved_memory
from optiacts.ops.dropout import factor
from optiacts.packing import pack
from tests.compilers import code_of, without_kernels
from tests.samples import DTYPES, NAMES, SIXTEEN_BIT, every_finite

P = 0.1
Function = Callable[..., Tensor]

# what ours are, of one tensor, and of which functions of PyTorch's
ALONE: dict[str, tuple[Function, Function]] = {
    "plain": (optiacts.dropout, F.dropout),
    "inplace": (
        lambda x, p: optiacts.dropout(x * 1, p, inplace=True),
        lambda x, p: F.dropout(x * 1, p, inplace=True),
    ),
    **{
        name: (
            functools.partial(lambda x, p, name: optiacts.activation_dropout(x, name, p), name=name),
            functools.partial(lambda x, p, name: F.dropout(curves.get(name).forward(x), p), name=name),
        )
        for name in (*NAMES, "relu")
    },
    **{
        f"{name} gate": (
            functools.partial(lambda x, p, name: optiacts.gated_dropout(x, up(x), name, p), name=name),
            functools.partial(lambda x, p, name: F.dropout(curves.get(name).forward(x) * up(x), p), name=name),
        )
        for name in ("silu", "gelu_tanh", "relu")
    },
}


def up(gate: Tensor) -> Tensor:
    return gate.detach() * 0.7 + 0.1


def seeded(function: Callable[..., Any], seed: int = 5) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        torch.manual_seed(seed)
        return function(*args)

    return run


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    x = (torch.randn(shape) * 2).to(dtype)
    yield x
    if x.ndim > 1:
        yield x.transpose(0, -1)
        yield x[..., ::2]
        yield x[..., :1].expand(x.shape)
    if x.ndim == 4:
        yield x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("what", ALONE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_forward_and_the_random_stream_are_pytorchs(what: str, dtype: torch.dtype) -> None:
    ours, theirs = ALONE[what]
    for shape in ((), (1,), (7,), (33, 17), (2, 3, 8, 7), (64, 40)):
        for x in layouts(shape, dtype):
            for p in (0.1, 0.5, 0.93):
                x = x.detach().requires_grad_()
                y, state = seeded(ours)(x, p), torch.get_rng_state()
                expected = seeded(theirs)(x, p)
                assert torch.equal(torch.get_rng_state(), state)
                assert torch.equal(y, expected) and y.dtype == expected.dtype
                assert y.numel() < 2 or y.stride() == expected.stride()
                assert type(y.grad_fn).__name__.startswith("OptiActs")


@pytest.mark.parametrize("what", ["plain", "inplace", "relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mask_is_exact(what: str, dtype: torch.dtype) -> None:
    """The gradient is PyTorch's to the bit, where nothing has to be decoded."""
    ours, theirs = ALONE[what]
    for shape in ((), (7,), (33, 17), (2, 3, 8, 7)):
        for x in layouts(shape, dtype):
            x = x.detach().requires_grad_()
            grad = torch.randn(x.shape).to(dtype)
            (got,) = torch.autograd.grad(seeded(ours)(x, 0.3), x, grad)
            (expected,) = torch.autograd.grad(seeded(theirs)(x, 0.3), x, grad)
            assert torch.equal(got, expected)


@pytest.mark.parametrize("name", [*NAMES, "relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_the_mathematics(name: str, dtype: torch.dtype) -> None:
    """Dropped elements have gradient 0 exactly; padding has f'(0)."""
    curve = curves.get(name)
    x = (torch.randn(64, 103) * 3).to(dtype)
    x[:, ::5] = 0
    x.requires_grad_()
    kept = seeded(F.dropout)(torch.ones_like(x), P) != 0
    (grad,) = torch.autograd.grad(seeded(optiacts.activation_dropout)(x, name, P).sum(), x)
    assert bool((grad[~kept] == 0).all())
    scale = factor(P, dtype)
    exact = curve.derivative(x.detach().double(), torch) * scale
    plain = torch.autograd.grad(
        curve.forward(x) if name == "relu" else optiacts.activation(x, name), x, torch.ones_like(x)
    )[0]
    worst = (plain.double() * scale - exact).abs().max() + torch.finfo(dtype).eps
    assert (grad.double() - exact)[kept].abs().max() <= 1.6 * worst
    at_zero = grad[(x == 0) & kept].double()
    if name != "relu":
        wanted = float(curve.derivative(torch.zeros((), dtype=torch.float64), torch)) * scale
        assert torch.allclose(at_zero, torch.full_like(at_zero, wanted), rtol=max(2 * torch.finfo(dtype).eps, 4e-6))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
def test_errors_over_every_16_bit_input(name: str, dtype: torch.dtype) -> None:
    """RMS at most 1.3 times, worst at most 1.6 times the error of the same activation without dropout."""
    curve, x = curves.get(name), every_finite(dtype).requires_grad_()
    exact = curve.derivative(x.detach().double(), torch)
    far = x.detach().abs() < 30  # all the rest is 0 or 1
    scale = factor(P, dtype)
    ones = torch.full_like(x, 1.0)

    def slopes(y: Tensor, by: float) -> Tensor:
        (grad,) = torch.autograd.grad(y, x, ones.float().to(dtype))
        return grad.double() / by - exact

    outputs = optiacts.activation(x, name)
    plain = slopes(outputs, 1.0)
    for seed in range(3):
        y = seeded(optiacts.activation_dropout, seed)(x, name, P)
        kept = seeded(F.dropout, seed)(torch.ones_like(x), P) != 0
        error = slopes(y, scale)
        dropped = ~kept & outputs.isfinite()  # of the largest inputs some kernels of PyTorch's make infinities
        assert bool((error + exact)[dropped].eq(0).all())
        told = kept & far
        assert error[told].square().mean().sqrt() <= 1.3 * plain[told].square().mean().sqrt()
        assert error[told].abs().max() <= 1.6 * plain[far].abs().max()
        assert bool(error[kept].isfinite().all())


def test_what_draws_nothing_is_pytorchs() -> None:
    x = torch.randn(8, 24, requires_grad=True)
    for p, training in ((0.0, True), (1.0, True), (0.5, False)):
        state = torch.get_rng_state()
        y = optiacts.dropout(x, p, training)
        assert torch.equal(y, F.dropout(x, p, training)) and (y is x) == (p == 0 or not training)
        act = optiacts.activation_dropout(x, "gelu", p, training)
        product = optiacts.gated_dropout(x, up(x), "silu", p, training)
        assert torch.equal(act, F.dropout(F.gelu(x), p, training))
        assert torch.equal(product, F.dropout(F.silu(x) * up(x), p, training))
        (grad,) = torch.autograd.grad(act.sum() + product.sum(), x)
        assert bool(grad.isfinite().all()) and bool((grad == 0).all()) == (p == 1)
        assert torch.equal(torch.get_rng_state(), state)


def test_bad_arguments_are_pytorchs_errors() -> None:
    x = torch.randn(3, requires_grad=True)
    for p in (-0.1, 1.1):
        for call in (optiacts.dropout, lambda x, p: optiacts.activation_dropout(x, "gelu", p)):
            with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
                call(x, p)
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            optiacts.Dropout(p)
    with pytest.raises(ValueError, match="curve must be one of"):
        optiacts.activation_dropout(x, "gelo", 0.1)
    with pytest.raises(ValueError, match="curve must be one of"):
        optiacts.ActivationDropout("gelo")
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        optiacts.dropout(x, 0.5, inplace=True)


def test_without_a_gradient_it_is_pytorchs_op() -> None:
    x = torch.randn(8, 24)
    for y in (optiacts.dropout(x), optiacts.activation_dropout(x, "gelu"), optiacts.gated_dropout(x, x, "silu")):
        assert y.grad_fn is None
    with torch.no_grad():
        y = seeded(optiacts.activation_dropout)(x.requires_grad_(), "gelu", 0.5)
    assert torch.equal(y, seeded(F.dropout)(F.gelu(x.detach()), 0.5))


def test_dropped_inf_and_nan_are_nan_as_in_pytorch() -> None:
    x = torch.tensor([float("inf"), float("nan"), 1.0] * 40, requires_grad=True)
    for ours, theirs in ALONE.values():
        y, expected = seeded(ours)(x, 0.5), seeded(theirs)(x, 0.5)
        assert torch.equal(y.isnan(), expected.isnan())
        (grad,) = torch.autograd.grad(y.nan_to_num(0, 0, 0).sum(), x)
        assert bool(grad[2::3].isfinite().all())


@pytest.mark.parametrize("what", ["plain", "inplace", *NAMES])
def test_gradcheck(what: str) -> None:
    x = torch.randn(11, dtype=torch.float64)  # time grows with the elements; a byte of bits and a part of one
    x[:5] = 0
    function = seeded(lambda x: ALONE[what][0](x, 0.4))
    torch.autograd.gradcheck(function, (x.requires_grad_(),), check_batched_grad=True)
    torch.autograd.gradgradcheck(function, (x,))


def test_gradcheck_of_a_gated_product() -> None:
    gate, factor = (torch.randn(9, dtype=torch.float64) for _ in range(2))
    gate[:5], factor[:3] = 0, 0
    inputs = gate.requires_grad_(), factor.requires_grad_()
    for name in ("gelu", "silu"):
        function = seeded(functools.partial(lambda g, u, name: optiacts.gated_dropout(g, u, name, 0.4), name=name))
        torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
        torch.autograd.gradgradcheck(function, inputs)


def test_gated_errors_are_pytorchs() -> None:
    """RMS error of both gradients at most 1.1 times that of PyTorch's own three steps."""
    for dtype in SIXTEEN_BIT:
        gate, factor, grad = (torch.randn(512, 256).to(dtype) for _ in range(3))
        kept = seeded(F.dropout)(torch.ones_like(gate), P)

        def gradients(run: Callable[..., Tensor], of: tuple[Tensor, ...] = (gate, factor)) -> Any:
            leaves = [t.detach().requires_grad_() for t in of]
            return torch.autograd.grad(run(*leaves), leaves, grad.to(leaves[0].dtype))  # noqa: B023

        exact = gradients(lambda g, u: F.silu(g) * u * kept.double(), (gate.double(), factor.double()))  # noqa: B023
        ours = gradients(seeded(lambda g, u: optiacts.gated_dropout(g, u, "silu", P)))
        theirs = gradients(seeded(lambda g, u: F.dropout(F.silu(g) * u, P)))
        for a, b, truth in zip(ours, theirs, exact, strict=True):
            assert bool((a[kept == 0] == 0).all())
            assert (a.double() - truth).norm() <= 1.1 * (b.double() - truth).norm()


# What is saved

ROWS, WIDTH, HIDDEN = 24, 32, 104
BITS = ROWS * HIDDEN // 8


class MLP(nn.Module):
    def __init__(self, middle: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN, dtype=dtype), nn.Linear(HIDDEN, WIDTH, dtype=dtype)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(self.up(x)))


class GatedMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.down(self.middle(hidden, hidden.flip(-1)))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_bytes(dtype: torch.dtype, compiled: bool) -> None:
    hidden = ROWS * HIDDEN * dtype.itemsize
    for make, expected in (
        (lambda: MLP(optiacts.Dropout(P), dtype), hidden + BITS),
        (lambda: MLP(optiacts.ActivationDropout("gelu", P), dtype), hidden + BITS),
        (lambda: MLP(optiacts.ActivationDropout("relu", P), dtype), hidden),
        (lambda: GatedMLP(optiacts.GatedDropout("silu", P), dtype), 2 * hidden + 2 * BITS),
    ):
        torch.compiler.reset()
        model, x = make(), torch.randn(ROWS, WIDTH).to(dtype)
        model = torch.compile(model, fullgraph=True, backend=without_kernels) if compiled else model
        memory = saved_memory(model, x)
        memory.output.sum().backward()
        edges = 0 if compiled else memory.bytes - x.nbytes - expected
        assert edges in (0, 2 * dtype.itemsize)  # a gated product's
        assert memory.bytes - x.nbytes - edges == expected


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_two_dropouts_have_two_masks(compiled: bool) -> None:
    torch.compiler.reset()
    x = torch.ones(8, 1024, requires_grad=True)

    def difference(x: Tensor) -> Tensor:
        return optiacts.activation_dropout(x, "gelu", 0.5) - optiacts.activation_dropout(x, "gelu", 0.5)

    y = torch.compile(difference, fullgraph=True)(x) if compiled else difference(x)
    assert 0.3 < float((y == 0).float().mean()) < 0.7
    (grad,) = torch.autograd.grad(y.sum(), x)
    slope = curves.get("gelu").derivative(1.0, math) / 0.5  # of every kept element
    assert torch.allclose(grad, torch.sign(y) * slope, atol=1e-5)


def test_threads_have_masks_of_their_own() -> None:
    """They share a generator, so which numbers each draws is chance; its forward and backward have the same ones."""

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = (2 + torch.rand(64, 512, generator=torch.Generator().manual_seed(seed))).requires_grad_()
        y = optiacts.activation_dropout(x, "gelu", 0.3)
        return y, torch.autograd.grad(y.sum(), x)[0]

    with ThreadPoolExecutor(8) as pool:
        for y, grad in pool.map(run, range(64)):
            assert torch.equal(y != 0, grad != 0)
            assert 0.27 < float((y == 0).float().mean()) < 0.33


@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_checkpointing_replays_the_masks(backend: str | None) -> None:
    torch.compiler.reset()
    x = torch.ones(8, 1024, requires_grad=True)
    for ours in (lambda z: optiacts.dropout(z, 0.5), lambda z: optiacts.activation_dropout(z, "silu", 0.5)):
        run: Any = functools.partial(checkpoint, lambda z, ours=ours: ours(z * 1.5), use_reentrant=False)
        run = run if backend is None else torch.compile(run, backend=backend)
        y = run(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y != 0, grad != 0) and 0.3 < float((y == 0).float().mean()) < 0.7


def test_compiled_it_draws_what_compiled_pytorch_draws() -> None:
    x = torch.randn(16, 64, requires_grad=True)
    for ours, theirs in (ALONE["plain"], ALONE["gelu"]):
        torch.compiler.reset()
        got, expected = (seeded(torch.compile(f, fullgraph=True))(x, 0.3) for f in (ours, theirs))
        assert torch.equal(got == 0, expected == 0)
        assert (got - expected).norm() <= 3e-7 * expected.norm()  # a compiler's GELU is not PyTorch's to the bit


def test_vmap_has_pytorchs_rules() -> None:
    x = torch.randn(5, 8, 16, requires_grad=True)
    for ours, theirs in (ALONE["plain"], ALONE["gelu"], ALONE["silu gate"]):
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(lambda x, ours=ours: ours(x, 0.5))(x)
        for randomness in ("same", "different"):
            a, b = (seeded(torch.vmap(functools.partial(f, p=0.5), randomness=randomness))(x) for f in (ours, theirs))
            assert torch.equal(a, b)
        gradients = [
            seeded(torch.func.grad(lambda x, f=f: f(x, 0.5).sum()))(x.detach().double()) for f in (ours, theirs)
        ]
        assert torch.allclose(*gradients)
        _, tangent = seeded(lambda x, f=ours: torch.func.jvp(lambda x: f(x, 0.5), (x,), (x,)))(x.detach().double())
        _, wanted = seeded(lambda x, f=theirs: torch.func.jvp(lambda x: f(x, 0.5), (x,), (x,)))(x.detach().double())
        assert torch.allclose(tangent, wanted)


def test_a_result_changed_in_place_is_an_error() -> None:
    x = torch.randn(8, 24, requires_grad=True)
    for y in (optiacts.activation_dropout(x, "gelu", P), optiacts.gated_dropout(x, up(x), "silu", P)):
        y.mul_(2)
        with pytest.raises(optiacts.OverwrittenError, match="changed in place"):
            y.sum().backward()
    optiacts.dropout(x, P).mul_(2).sum().backward()  # needs no output


def test_modules() -> None:
    module = optiacts.Dropout(0.3)
    assert isinstance(module, nn.Dropout) and repr(module) == repr(nn.Dropout(0.3))
    assert repr(optiacts.ActivationDropout("gelu", 0.1)) == "ActivationDropout('gelu', p=0.1)"
    x = torch.randn(16, 24, requires_grad=True)
    for p in (0.3, 0.6):
        module.p = p
        assert torch.equal(seeded(module)(x), seeded(F.dropout)(x, p))
    module.eval()
    assert module(x) is x


def test_ops_reject_what_a_backend_could_read_out_of_bounds() -> None:
    x = torch.randn(3, 20)
    bits = ops.dropout_pack(x > 0, [])
    assert torch.equal(bits, pack(x <= 0))
    with pytest.raises(ValueError, match=r"bits must be uint8 of shape \(3, 3\) on cpu"):
        ops.dropout_scale(x, bits[:, :2], 2.0, [])
    with pytest.raises(ValueError, match="kept must be bool"):
        ops.dropout_pack(x, [])
    assert torch.equal(ops.dropout_scale(x, bits, 2.0, []), torch.where(x > 0, 2 * x, 0 * x))


def test_compiled_code_for_cpus_stores_no_bools() -> None:
    """It stores them one by one, which takes longer than the rest of the dropout."""
    x = torch.randn(64, 64, requires_grad=True)
    code = code_of(lambda x: optiacts.dropout(x, 0.1, training=True) * 2.0, x)
    assert "optiacts.dropout_pack" in code
    assert "bool*" not in code
