"""Norms that are no modules of PyTorch's: functions in a forward, a norm's own forward, and what passes them on."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optiacts

C = 16


class BatchNormAct(nn.BatchNorm2d):
    """As image models write it: a BatchNorm with its own copy of PyTorch's arithmetic, and what follows it."""

    def __init__(self, channels: int, act: Callable[[], nn.Module] = nn.SiLU, **options: Any) -> None:
        super().__init__(channels, **options)
        self.drop: nn.Module = nn.Identity()
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        exponential_average_factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                exponential_average_factor = 1.0 / float(self.num_batches_tracked)
            else:
                exponential_average_factor = self.momentum
        if self.training:
            bn_training = True
        else:
            bn_training = (self.running_mean is None) and (self.running_var is None)
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            bn_training,
            exponential_average_factor,
            self.eps,
        )
        x = self.drop(x)
        x = self.act(x)
        return x


def other_group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


class GroupNormAct(nn.GroupNorm):
    fast = False

    def __init__(self) -> None:
        super().__init__(4, C)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.fast:
            x = other_group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        else:
            x = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        x = self.drop(x)
        x = self.act(x)
        return x


class LayerNormAct(nn.LayerNorm):
    def __init__(self) -> None:
        super().__init__(C)
        self.drop, self.act = nn.Identity(), nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.movedim(1, -1), self.normalized_shape, bias=self.bias, weight=self.weight, eps=self.eps)
        return self.act(self.drop(x)).movedim(-1, 1)  # type: ignore[no-any-return]


def other_layer_norm(x: Tensor, shape: list[int], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, shape, weight, bias, eps)


class LayerNormAct2d(nn.LayerNorm):
    """As image models write it: over channels that are dimension 1 again before the activation."""

    fast = False

    def __init__(self) -> None:
        super().__init__(C)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        if self.fast:
            x = other_layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        else:
            x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        x = x.permute(0, 3, 1, 2)
        x = self.drop(x)
        x = self.act(x)
        return x


class InstanceNormAct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(C) + 0.5), nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(F.instance_norm(x, None, None, self.weight, self.bias))


class Inherited(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class SeenThrough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.BatchNorm2d(C), nn.Identity(), nn.Identity()
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.norm(x))
        h = self.second(h)
        return self.act(self.first(h))  # type: ignore[no-any-return]


def sequence() -> nn.Module:
    return nn.Sequential(nn.GroupNorm(4, C), nn.Identity(), nn.Identity(), nn.SiLU())


KINDS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: BatchNormAct(C),
    "BatchNorm, in place": lambda: BatchNormAct(C, lambda: nn.SiLU(inplace=True)),
    "BatchNorm, cumulative average": lambda: BatchNormAct(C, momentum=None),
    "BatchNorm, plain": lambda: BatchNormAct(C, affine=False),
    "BatchNorm, no running statistics": lambda: BatchNormAct(C, track_running_stats=False),
    "GroupNorm": GroupNormAct,
    "LayerNorm": LayerNormAct,
    "LayerNorm, permuted": LayerNormAct2d,
    "InstanceNorm": InstanceNormAct,
    "inherited forward": lambda: Inherited(C),
    "seen through": SeenThrough,
    "sequence": sequence,
}


def built(kind: str) -> tuple[nn.Module, nn.Module]:
    """A block, the same one converted, and that one's report."""
    torch.manual_seed(0)
    block = KINDS[kind]()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape)).add_(0.2 * torch.randn(parameter.shape))
    converted = copy.deepcopy(block)
    report = optiacts.convert(converted)
    assert [entry.what for entry in report.converted if " + " in entry.what], str(report)
    assert not report.left, str(report)
    return block, converted


DTYPES = (torch.float32, torch.float32, torch.float64)


def is_chain(y: Tensor) -> bool:
    node = y.grad_fn
    while node is not None and "Chain" not in node.name():
        node = node.next_functions[0][0] if "Permute" in node.name() else None
    return node is not None


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_chained_bit_for_bit(kind: str, channels_last: bool) -> None:
    """Three steps in training, one in evaluation: outputs, running statistics and counters are PyTorch's."""
    block, converted = built(kind)
    for training in (True, True, True, False):
        block.train(training), converted.train(training)
        given = torch.randn(4, C, 6, 7)
        given = given.to(memory_format=torch.channels_last) if channels_last else given
        x, other, wide = (given.to(dtype, copy=True).requires_grad_() for dtype in DTYPES)
        exact = copy.deepcopy(block).double()(wide)
        plain, y = block(other), converted(x)
        assert is_chain(y)
        assert torch.equal(y, plain)
        assert y.stride() == plain.stride()
        assert all(map(torch.equal, converted.buffers(), block.buffers()))
        grad = torch.randn(y.shape)
        found = torch.autograd.grad(y, [x, *converted.parameters()], grad)
        (due,) = torch.autograd.grad(exact, wide, grad.double())
        assert (found[0] - due).norm() <= 6e-6 * due.norm()
        wanted = torch.autograd.grad(plain, [other, *block.parameters()], grad)
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("kind", ["BatchNorm", "GroupNorm", "seen through", "sequence"])
def test_one_tensor_is_held(kind: str) -> None:
    block, converted = built(kind)
    x = torch.randn(8, C, 16, 16).requires_grad_() * 1
    held = [optiacts.saved_memory(model, x).bytes for model in (block, converted)]
    small = 2 * 4 * C + 4 * 8 * C
    assert held[0] >= 2 * x.nbytes
    assert held[1] <= x.nbytes * 33 // 32 + small


def test_what_is_passed_on_is_asked_when_it_runs() -> None:
    """A module that changes its input, a hook, or another branch: PyTorch's path, and its results."""
    x = torch.randn(4, C, 6, 7).requires_grad_()
    seen: list[Tensor] = []

    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    def doubled(block: Any) -> None:
        block.drop = Doubling()

    def dropped(block: Any) -> None:
        block.drop = nn.Dropout2d(0.5)

    def watched(block: Any) -> None:
        block.drop.register_forward_hook(lambda module, args, output: seen.append(output))

    for change in (doubled, dropped, watched):
        for make in (lambda: BatchNormAct(C), GroupNormAct):
            block = make()
            converted = copy.deepcopy(block)
            optiacts.convert(converted)
            change(block), change(converted)
            torch.manual_seed(1)
            plain = block(x)
            torch.manual_seed(1)
            y = converted(x)
            assert not is_chain(y)
            assert torch.equal(y, plain)
    assert len(seen) == 4
    block, converted = built("GroupNorm")
    converted.fast = True  # type: ignore[assignment]
    assert not is_chain(converted(x))
    assert torch.equal(converted(x), block(x))


def test_a_norm_whose_output_goes_elsewhere_is_left() -> None:
    class Returned(BatchNormAct):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x = F.batch_norm(x, None, None, self.weight, self.bias, True)
            y = self.drop(x)
            return self.act(y), x

    class CalledBetween(BatchNormAct):
        def forward(self, x: Tensor) -> Tensor:
            x = F.batch_norm(x, None, None, self.weight, self.bias, True)
            torch.rand(3)
            return self.act(x)  # type: ignore[no-any-return]

    class Changed(BatchNormAct):
        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(F.batch_norm(x, None, None, self.weight, self.bias, True))
            x += 1
            return self.act(x)  # type: ignore[no-any-return]

    for kind in (Returned, CalledBetween, Changed):
        report = optiacts.convert(kind(C))
        assert not [entry for entry in report.converted if " + " in entry.what], kind


def test_calls_that_pytorch_refuses_raise_its_errors() -> None:
    class Wrong(nn.Module):
        def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.call = call

        def forward(self, x: Tensor) -> Tensor:
            return F.silu(F.group_norm(x, 5)) if self.call is None else F.silu(F.batch_norm(x, None, None))

    for call in (None, abs):
        model = Wrong(call)  # type: ignore[arg-type]
        errors = []
        for converted in (False, True):
            if converted:
                optiacts.convert(model)
            with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
                model(torch.randn(2, C, 3, 3).requires_grad_())
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]


def test_copies_and_the_way_back() -> None:
    block, converted = built("BatchNorm")
    again = copy.deepcopy(converted)
    x = torch.randn(4, C, 6, 7).requires_grad_()
    assert is_chain(again(x))
    optiacts.revert(converted)
    assert type(converted) is type(block)
    assert not is_chain(converted(x))


def test_compiled() -> None:
    block, converted = built("BatchNorm")
    x = torch.randn(8, C, 16, 16).requires_grad_()
    compiled = torch.compile(converted, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), block(x))
    assert all(map(torch.equal, converted.buffers(), block.buffers()))
    held = optiacts.saved_memory(lambda x: compiled(x * 1), x).bytes
    assert held <= x.nbytes * 33 // 32 + 16 * 8 * C


def test_permuted_norms_that_stay_apart_are_permuted_too() -> None:
    plain, block = built("LayerNorm, permuted")
    x = torch.randn(2, C, 3, 5)
    found = []
    for each in (plain, block):
        with torch.no_grad():
            each.weight.zero_()  # type: ignore[union-attr, operator]
        own = x.clone().requires_grad_()
        y = each(own * 1)
        assert not is_chain(y)
        found.append((y, *torch.autograd.grad(y.square().sum(), [own, *each.parameters()])))
    for ours, theirs in zip(*found, strict=True):
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs)
