"""Squeeze-and-excitation behind a chain: the product and the gate stand in for the chain's output."""

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import optiacts
from optiacts.ops import chain_scaled, norm_channels

C, SIZE, BATCH = 16, 12, 4


seen: list[StorageWeakRef] = []  # of what the last squeeze-and-excitations were given


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.act, self.expand = nn.Conv2d(C, 4, 1), nn.SiLU(), nn.Conv2d(4, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen.append(StorageWeakRef(x.untyped_storage()))
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(self.act(self.reduce(pooled))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, C, 1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(C), nn.SiLU()
        self.excite, self.last = SqueezeExcite(), nn.Conv2d(C, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        return self.last(self.excite(x))  # type: ignore[no-any-return]


def built(change: Any = lambda block: None) -> tuple[Block, Block]:
    """A block, and the same one converted."""
    torch.manual_seed(0)
    block = Block()
    with torch.no_grad():
        for parameter in block.norm.parameters():
            parameter.add_(0.2 * torch.randn(C))
        block.excite.expand.weight.mul_(4)
        change(block)
    converted = copy.deepcopy(block)
    optiacts.convert(converted)
    return block, converted


def data() -> Tensor:
    return torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def gradients(block: nn.Module, y: Tensor, retain: bool = False) -> list[Tensor]:
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return list(torch.autograd.grad(y, list(block.parameters()), grad, retain_graph=retain))


def exact(block: Block, grad_like: Tensor) -> list[Tensor]:
    wide = copy.deepcopy(block).double()
    grad = torch.randn(grad_like.shape, generator=torch.Generator().manual_seed(1)).to(grad_like.dtype)
    return list(torch.autograd.grad(wide(data().double()), list(wide.parameters()), grad.double()))


def off(found: list[Tensor], due: list[Tensor]) -> float:
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, due, strict=True))


def scales(y: Tensor) -> bool:
    """Whether a scaled product stands in the graph of ``y``."""
    waiting, met = [y.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if "OptiActsScaled" in node.name():
            return True
        waiting += [inner for inner, _ in node.next_functions]
    return False


def test_result_gradients_and_what_is_held() -> None:
    block, converted = built()
    x = data()
    plain, y = block(x), converted(x)
    assert scales(y)
    assert torch.equal(y, plain)
    assert not seen[-2].expired()
    assert seen[-1].expired()  # the chain's output is gone
    assert off(gradients(converted, y), exact(block, y)) < 3e-6
    held = [optiacts.saved_memory(model, x).bytes for model in (block, converted)]
    large, elements = 4 * BATCH * C * SIZE * SIZE, BATCH * C * SIZE * SIZE
    small = 4 * (BATCH * (2 * C + 16) + 4 * C)
    assert large + elements // 8 <= held[1] - x.nbytes <= large * 1.01 + BATCH * C * SIZE * SIZE // 8 + small
    assert held[0] - x.nbytes >= 4 * large


@pytest.mark.parametrize("retain", [False, True])
def test_twice_and_without_the_product(retain: bool) -> None:
    block, converted = built()
    x = data()
    y = converted(x)
    first = gradients(converted, y, retain=True)
    assert all(map(torch.equal, first, gradients(converted, y, retain)))
    if not retain:
        with pytest.raises(RuntimeError, match="second time"):
            gradients(converted, y)
    del y
    # only the gate's path leads to the loss
    for model in (block, converted):
        model.excite.expand.register_forward_hook(lambda module, args, output: setattr(module, "made", output))
    found = []
    for model in (block, converted):
        model(x)
        weights = [model.first.weight, *model.norm.parameters()]
        found.append(torch.autograd.grad(model.excite.expand.made.square().sum(), weights))  # type: ignore[operator]
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """bfloat16 as float32; float16 keeps the chain's output."""
    block, converted = built()
    with torch.autocast("cpu", dtype):
        y, plain = converted(data()), block(data())
    assert scales(y) is (dtype is torch.bfloat16)
    assert torch.equal(y, plain)
    due = exact(block, y)
    pairs = zip(gradients(converted, y), gradients(block, plain), due, strict=True)
    for ours, theirs, true in pairs:
        assert off([ours], [true]) <= max(2.0 * off([theirs], [true]), 1e-3)


def test_a_gate_that_vanishes_on_a_cpu_keeps_the_output() -> None:
    for bias in (-20.0, -60.0, -120.0):
        block, converted = built(lambda block, bias=bias: block.excite.expand.bias[3:4].fill_(bias))
        y = converted(data())
        assert not scales(y)
        assert torch.equal(y, block(data()))
        found, due = gradients(converted, y), exact(block, y)
        names = [name for name, _ in block.named_parameters()]
        pairs = [(a, b) for a, b, name in zip(found, due, names, strict=True) if not name.startswith("excite.expand")]
        assert off([a for a, _ in pairs], [b for _, b in pairs]) < 3e-6


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a device that the host does not wait for."""
    optiacts.norm_weights_changed()
    for module in (norm_channels, chain_scaled):
        monkeypatch.setattr(module, "waits", lambda device: True)
    yield
    optiacts.norm_weights_changed()


def test_a_gate_that_vanishes_unseen_ends_in_an_error(waiting: None) -> None:
    block, converted = built()
    y = converted(data())
    assert scales(y)
    assert off(gradients(converted, y), exact(block, y)) < 3e-6
    with torch.no_grad():
        converted.excite.expand.bias[3] = -50.0  # type: ignore[index]
    found = gradients(converted, converted(data()))
    assert found[0].isnan().all()
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.0)
    with pytest.raises(optiacts.UnseenChangeError, match="a gate behind it fell below"):
        optimizer.step()  # tells it if any norm has a compiled graph, of another test too
        converted(data())


def test_changed_in_place() -> None:
    """The product must stay as it is; the chain's output need not."""

    block, converted = built()

    def clears_its_input(module: nn.Module, args: Any, output: Tensor) -> None:
        args[0].detach().zero_()

    def changes_its_output(module: nn.Module, args: Any, output: Tensor) -> None:
        output.detach().add_(1)

    hook = converted.excite.register_forward_hook(clears_its_input)
    y = converted(data())
    assert scales(y)
    assert off(gradients(converted, y), exact(block, y)) < 3e-6
    hook.remove()
    converted.excite.register_forward_hook(changes_its_output)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(converted, converted(data()))
    y = optiacts.norm_activation(torch.randn(2, C, 4, 4).requires_grad_(), nn.BatchNorm2d(C), "silu")
    gate = torch.rand(2, C, 1, 1)
    product = chain_scaled.scaled(y, gate)
    assert product is not None
    gate.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_hooks_of_others_on_saved_tensors() -> None:
    block, converted = built()
    due = exact(block, block(data()))
    with save_on_cpu():
        y = converted(data())
    assert not scales(y)
    assert off(gradients(converted, y), due) < 3e-6
    for reentrant in (False, True):
        x = data().requires_grad_()
        y = checkpoint(converted, x, use_reentrant=reentrant)
        converted.zero_grad()
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
        assert off([p.grad for p in converted.parameters()], due) < 3e-6  # type: ignore[misc]


def test_second_derivatives_are_an_error() -> None:
    _, converted = built()
    weight = converted.last.weight
    (first,) = torch.autograd.grad(converted(data()).square().sum(), converted.first.weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="chains=False"):
        torch.autograd.grad(first.square().sum(), weight)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("excited", [False, True])
def test_nothing_outlives_its_graph(excited: bool, backward: bool) -> None:
    """Whether a backward ran or not, and whether a product came or not."""
    _, converted = built()
    gc.disable()
    try:
        y = optiacts.norm_activation(converted.first(data()), converted.norm, "silu")
        storage = StorageWeakRef(y.untyped_storage())
        result = converted.excite(y) if excited else y * 1
        del y
        assert storage.expired() is excited
        if backward:
            result.sum().backward()
        del result
        assert storage.expired()
    finally:
        gc.enable()


def test_other_gates_are_left() -> None:
    """As large as the output, or of another dtype."""
    y = optiacts.norm_activation(torch.randn(2, C, 4, 4).requires_grad_(), nn.BatchNorm2d(C), "silu")
    assert chain_scaled.scaled(y, torch.rand(2, C, 4, 4)) is None
    assert chain_scaled.scaled(y, torch.rand(2, C, 1, 1).double()) is None
    assert chain_scaled.scaled(y, torch.rand(2, 2 * C, 1, 1)) is None
    assert chain_scaled.scaled(y * 1, torch.rand(2, C, 1, 1)) is None
    assert chain_scaled.scaled(y, 2 + torch.rand(2, C, 1, 1)) is None
    assert chain_scaled.scaled(y, torch.rand(2, C, 1, 1)) is not None
    assert chain_scaled.scaled(y, torch.rand(2, C, 1, 1)) is None
