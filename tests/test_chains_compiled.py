"""Chains under torch.compile: what is held, gradients against float64, statistics, and weights that spoil the output.

But for one they compile with the partitioner and decompositions of Inductor and none of its kernels, which take long.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optiacts
from optiacts import backends, curves
from optiacts.backends import triton
from optiacts.ops import chain_compiled
from optiacts.ops.chain import chain_backward, chain_forward
from optiacts.ops.chain_compiled import chain_gradients, chain_pack
from tests.compilers import code_of, without_kernels

C, SHAPE = 16, (4, 16, 8, 8)
NORMS: dict[str, Any] = {
    "BatchNorm": lambda: nn.BatchNorm2d(C),
    "GroupNorm": lambda: nn.GroupNorm(4, C),
}
CHECKS = ("test_schema", "test_faketensor")
MOST = {torch.float32: 6e-6, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True, scope="module")
def _nothing_stays() -> Iterator[None]:
    """Norms with graphs are looked at in every optimizer's step, those of other tests too."""
    yield
    torch.compiler.reset()
    gc.collect()


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch.compiler.reset()
    optiacts.norm_weights_changed()
    yield
    torch.compiler.reset()
    optiacts.norm_weights_changed()


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(C, C, 1, bias=False), norm, nn.Conv2d(C, C, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.act(self.norm(self.first(x))))
        return y


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    block = Block(NORMS[name]())
    with torch.no_grad():
        for parameter in block.norm.parameters():
            parameter.add_(0.1 * torch.randn(C))
    return block.to(dtype)


def gradients(model: Any, x: Tensor, own: nn.Module) -> tuple[Tensor, list[Tensor]]:
    y = model(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return y, list(torch.autograd.grad(y, list(own.parameters()), grad))


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize(
    ("name", "training"), [("BatchNorm", True), ("BatchNorm", False), ("GroupNorm", True)]
)  # a GroupNorm knows no modes
def test_one_graph_holds_the_output_and_a_bit(name: str, dtype: torch.dtype, training: bool) -> None:
    plain = made(name, dtype).train(training)
    block, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    optiacts.convert(block)
    compiled = torch.compile(block, fullgraph=True, backend=without_kernels)
    compiled_plain = torch.compile(plain, fullgraph=True, backend=without_kernels)
    x = torch.randn(SHAPE).to(dtype)
    if not training:  # statistics that are those of something
        with torch.no_grad():
            for each in (plain, block, exact):
                if isinstance(each.norm, nn.BatchNorm2d):
                    each.norm.running_var.fill_(0.4)
    y, found = gradients(compiled, x, block)
    theirs, _ = gradients(compiled_plain, x, plain)
    due = gradients(exact, x.double(), exact)[1]
    assert torch.equal(y, theirs)
    for ours, their in zip(block.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, their)
    for one, true in zip(found, due, strict=True):
        assert (one.double() - true).norm() <= MOST[dtype] * true.norm() + 1e-4 * (true.norm() < 1e-2)
    held, held_plain = (optiacts.saved_memory(m, x).bytes for m in (compiled, compiled_plain))
    tensor, small = x.numel() * x.element_size(), 4 * (4 * C + 4 * C)
    assert 2 * tensor + x.numel() // 8 <= held <= 2 * tensor + x.numel() // 8 + small  # x and y for the convolutions
    assert held_plain >= 3 * tensor


def test_the_function_compiles_too() -> None:
    norm, conv = nn.BatchNorm2d(C), nn.Conv2d(C, C, 1)
    x = torch.randn(SHAPE, requires_grad=True)
    held = []
    for step in (lambda x: nn.functional.mish(norm(x)), lambda x: optiacts.norm_activation(x, norm, "mish")):
        compiled = torch.compile(lambda x, step=step: conv(step(x * 1)), fullgraph=True, backend=without_kernels)
        held.append(optiacts.saved_memory(compiled, x).bytes)
    assert held[1] < 0.6 * held[0]


def test_bad_weights_take_pytorchs_path() -> None:
    block = made("BatchNorm")
    with torch.no_grad():
        block.norm.weight[3] = 0
    plain = copy.deepcopy(block)
    optiacts.convert(block)
    x = torch.randn(SHAPE)
    compiled = torch.compile(block, fullgraph=True, backend=without_kernels)
    _, found = gradients(compiled, x, block)
    _, due = gradients(plain, x, plain)
    for one, true in zip(found, due, strict=True):
        assert (one - true).norm() <= 1e-5 * true.norm() + 1e-4 * (true.norm() < 1e-2)


def test_weights_changed_unseen_are_an_error_and_then_right() -> None:
    block = made("BatchNorm")
    optiacts.convert(block)
    compiled = torch.compile(block, fullgraph=True, backend=without_kernels)
    x = torch.randn(SHAPE)
    gradients(compiled, x, block)
    block.norm.weight.data[3] = 0
    with pytest.raises(optiacts.UnseenChangeError, match="changed after this graph was compiled"):
        compiled(x)
    plain = copy.deepcopy(block)
    optiacts.revert(plain)
    for one, true in zip(gradients(compiled, x, block)[1], gradients(plain, x, plain)[1], strict=True):
        assert (one - true).norm() <= 1e-5 * true.norm() + 1e-4 * (true.norm() < 1e-2)


def _right(z: Tensor) -> Tensor:
    return (~(z < curves.get("silu").threshold(z.dtype))).to(torch.uint8)


ORDERS = {"planes": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("statistics", ["batch", "rows", "given"])
@pytest.mark.parametrize("shape", [(4, 16, 5, 3), (3, 16, 1, 1), (2, 9, 7, 2)], ids=str)
def test_bits_tell_the_order_that_they_are_packed_in(shape: tuple[int, ...], statistics: str) -> None:
    """Whatever orders a compiler gives to the input of the activation, its output and the gradient."""
    channels = shape[1]
    torch.manual_seed(0)
    z, grad = torch.randn(shape), torch.randn(shape)
    rstd = torch.rand((shape[0], 1) if statistics == "rows" else (channels,)) + 0.5
    scale, shift = 1 + 0.2 * torch.rand(channels), 0.3 * torch.randn(channels)
    y, bits = chain_forward(z, "silu", 0, False)
    fixed = (rstd, scale, shift)
    rows = (t.flatten(2) for t in (grad, y))
    due = chain_backward(*rows, bits, *fixed, None, None, None, "silu", statistics, True, False, z.dtype)
    for of_z, of_y, of_grad in itertools.product(ORDERS.values(), repeat=3):
        packed = chain_pack(_right(z.contiguous(memory_format=of_z)), "silu", 0)
        laid = y.contiguous(memory_format=of_y)
        arguments = (
            grad.contiguous(memory_format=of_grad),
            laid,
            packed,
            *fixed,
            "silu",
            statistics,
            True,
            0,
            z.dtype,
        )
        found = chain_gradients(*arguments)
        assert found[0].stride() == torch.empty_like(laid).stride()
        for one, true in zip(found, due, strict=True):
            assert (one - true.view(one.shape)).norm() <= 2e-6 * true.norm()
    # one more byte than the bits, or than those of the order that takes more
    assert packed.numel() <= 1 + max(bits.numel(), -(-channels // 8) * z.numel() // channels)


@pytest.mark.parametrize("dims", [0, 2])
def test_the_ops_do_what_they_tell_compilers(dims: int) -> None:
    z = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    right = _right(z)
    bits = chain_pack(right, "silu", dims)
    channels = 16 if dims else 8
    rstd = torch.ones(16 if dims else 2, 1)
    arguments = (z, z, bits, rstd, torch.ones(channels), None, "silu", "rows", True, dims, torch.float32)
    torch.library.opcheck(chain_pack, (right, "silu", dims), test_utils=CHECKS)
    torch.library.opcheck(chain_gradients, arguments, test_utils=CHECKS)
    with pytest.raises(ValueError, match="right must be uint8"):
        chain_pack(z, "silu", dims)
    for place, wrong, said in ((1, z[:1], "one shape"), (2, bits[1:], "bits must be uint8 of shape")):
        with pytest.raises(ValueError, match=said):
            chain_gradients(*arguments[:place], wrong, *arguments[place + 1 :])


def test_inductors_order_of_memory_is_not_ours() -> None:
    """It lays out convolutions with channels last, which were planes when the block was traced."""
    plain = made("BatchNorm")
    block, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    optiacts.convert(block)
    x = torch.randn(SHAPE)
    found = gradients(torch.compile(block, fullgraph=True), x, block)[1]
    for one, true in zip(found, gradients(exact, x.double(), exact)[1], strict=True):
        assert (one.double() - true).norm() <= MOST[x.dtype] * true.norm() + 1e-4 * (true.norm() < 1e-2)


@pytest.mark.parametrize("name", ["BatchNorm", "GroupNorm"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_way_of_devices_that_wait_gives_the_same_gradients(
    name: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU no byte tells the order of the bits: it is that of the trace. The same ops, run here."""
    block = made(name)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(memory_format=memory_format)
    optiacts.convert(block)
    found = []
    for told in (chain_compiled._told, lambda tensor: False):
        monkeypatch.setattr(chain_compiled, "_told", told)
        torch._dynamo.reset()
        found.append(gradients(torch.compile(block, fullgraph=True, backend="aot_eager"), x, block)[1])
    for due, untold in zip(*found, strict=True):
        torch.testing.assert_close(untold, due, rtol=1e-6, atol=2e-6)


def test_compilers_ask_once_whether_a_device_has_kernels() -> None:
    """The answer hangs on packages and drivers, which nobody can trace."""

    def model(x: Tensor) -> Tensor:
        return x + backends.has_chain_kernels(torch.device("xpu"))

    triton.unavailable.cache_clear()
    x = torch.zeros(3)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.1), nn.Mish()], ids=str)
def test_other_activations(act: nn.Module) -> None:
    """Of a family of curves, whose numbers are in a closure: less is held, and the gradients are eager's."""
    block = made("BatchNorm")
    block.act = act
    plain = copy.deepcopy(block)
    optiacts.convert(block)
    x = torch.randn(SHAPE)
    found, held = {}, {}
    for who, own in (("ours", block), ("theirs", plain)):
        torch.compiler.reset()
        compiled = torch.compile(own, fullgraph=True)
        compiled(x)
        held[who] = optiacts.saved_memory(compiled, x).bytes
        found[who] = gradients(compiled, x, own)
    (y, ours), (due, theirs) = found["ours"], found["theirs"]
    assert torch.allclose(y, due, atol=1e-6)
    for one, true in zip(ours, theirs, strict=True):
        assert (one - true).norm() <= MOST[torch.float32] * true.norm() + 1e-6
    assert held["ours"] < 0.9 * held["theirs"]


def test_code_for_cpus_has_one_root_for_each_channel_and_stores_no_bools() -> None:
    """A root for each element, or bools, which are stored one by one, take longer than the activation."""
    block = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 16, 1))
    optiacts.convert(block)
    code = code_of(block, torch.randn(2, 16, 8, 8))
    assert "optiacts.chain_pack" in code
    assert "bool*" not in code
    assert code.count(".rsqrt()") <= 1


@pytest.mark.parametrize("dynamic", [True, None], ids=str)
def test_shapes_may_change(dynamic: bool | None) -> None:
    """Of which a compiler knows no numbers then."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 1))
    converted = copy.deepcopy(model)
    optiacts.convert(converted)
    compiled = torch.compile(converted, backend="aot_eager", dynamic=dynamic)
    for side in (5, 7, 9):
        x = torch.randn(3, 4, side, side)
        due, got = model(x), compiled(x)
        torch.testing.assert_close(got, due)
        wanted = torch.autograd.grad(due.square().sum(), list(model.parameters()))
        for ours, theirs in zip(
            torch.autograd.grad(got.square().sum(), list(converted.parameters())), wanted, strict=True
        ):
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-4
