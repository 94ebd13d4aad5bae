"""Models whose modules carry accelerate's hooks: a ``forward`` on the instance that calls the class's own."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

import optiacts


class Counting(ModelHook):
    """Counts the calls, as a hook that moves tensors sees them."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> tuple[object, object]:
        self.calls += 1
        return args, kwargs


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.gate, self.up, self.down = nn.Linear(64, 128), nn.Linear(64, 128), nn.Linear(128, 64)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.down(self.act(self.gate(x)) * self.up(x))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), Layer(), Layer())


def step(model: nn.Module) -> tuple[Tensor, list[Tensor], int]:
    torch.manual_seed(1)
    saved = optiacts.saved_memory(model, torch.randn(32, 64))
    gradients = torch.autograd.grad(saved.output.square().sum(), list(model.parameters()))
    return saved.output, list(gradients), saved.bytes


def same(hooked: nn.Module, plain: nn.Module) -> int:
    """Bytes held by ``hooked``, which must compute what ``plain`` does, once gradients were compared."""
    output, gradients, held = step(hooked)
    expected, reference, _ = step(plain)
    assert torch.equal(output, expected)
    for one, other in zip(gradients, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    return held


def test_hooks_on_layers_cost_no_saving() -> None:
    """What ``dispatch_model`` does with a device map of layers."""
    model, converted = net(), net()
    hook = Counting()
    for layer in model:
        add_hook_to_module(layer, hook)
    report = optiacts.convert(model)
    assert [entry.what for entry in report.converted] == [e.what for e in optiacts.convert(converted).converted]
    assert same(model, net()) == step(converted)[2] < step(net())[2]
    assert hook.calls == 3


def test_a_hook_on_every_module_is_called_and_keeps_what_it_can() -> None:
    """A hook on the activation wants to see it alone, so that it is no product: three tensors, not two and bits."""
    model = net()
    hooks = {path: Counting() for path, _ in model.named_modules()}
    for path, module in model.named_modules():
        add_hook_to_module(module, hooks[path])
    optiacts.convert(model)
    held = same(model, net())
    assert all(hook.calls == 1 for hook in hooks.values())
    converted = net()
    optiacts.convert(converted)
    hidden = 32 * 128 * 4
    assert held - step(converted)[2] == pytest.approx(2 * hidden, rel=0.05)  # one of each layer
    only_acts = net()
    optiacts.convert(only_acts, gated=False)
    assert held == step(only_acts)[2]


@pytest.mark.parametrize("order", ["hook, convert", "convert, hook"])
def test_taking_hooks_off_and_reverting(order: str) -> None:
    model = net()
    for what in order.split(", "):
        if what == "convert":
            optiacts.convert(model)
        else:
            for module in model.modules():
                add_hook_to_module(module, SequentialHook(Counting()))
    optiacts.revert(model)
    assert same(model, net()) == step(net())[2]
    optiacts.convert(model)
    remove_hook_from_module(model, recurse=True)
    assert all("forward" in module.__dict__ for module in model.modules())  # accelerate leaves it behind
    converted = net()
    optiacts.convert(converted)
    assert same(model, net()) == step(converted)[2]
    optiacts.revert(model)
    assert same(model, net()) == step(net())[2]
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_forward_of_ones_own_is_still_left_alone() -> None:
    model = net()
    layer = model[1]
    own = layer.forward
    layer.forward = lambda x: own(x) + 1
    before = step(model)[0]
    report = optiacts.convert(model)
    assert "its forward was replaced on the instance" in {e.reason for e in report.left if e.path == "1"}
    assert torch.equal(step(model)[0], before)


def test_copies_of_hooked_models() -> None:
    model = net()
    add_hook_to_module(model[1], Counting())
    optiacts.convert(model)
    copied = copy.deepcopy(net())
    optiacts.convert(copied)
    assert same(copy.deepcopy(model), net()) == step(copied)[2]


def test_compiled_after_hooks_were_taken_off() -> None:
    model = net()
    for module in model.modules():
        add_hook_to_module(module, Counting())
    optiacts.convert(model)
    remove_hook_from_module(model, recurse=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    converted = net()
    optiacts.convert(converted)
    eager = step(converted)
    torch.testing.assert_close(step(compiled)[0], eager[0])
