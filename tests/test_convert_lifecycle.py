"""Converted models: converted twice, reverted, copied, pickled, compiled, faked, wrapped."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import optiacts
from tests.convertible import (
    Gated,
    Plain,
    run,
    sample,
)


def test_twice_is_once_and_reverting_twice_too() -> None:
    model = nn.Sequential(Gated(), Plain())
    kinds = [type(m) for m in model.modules()]
    optiacts.convert(model)
    converted = [type(m) for m in model.modules()]
    assert optiacts.convert(model).entries == ()
    assert [type(m) for m in model.modules()] == converted
    optiacts.revert(model)
    optiacts.revert(model)
    assert [type(m) for m in model.modules()] == kinds


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_converted_and_can_be_reverted(copied: str) -> None:
    model = nn.Sequential(Gated(), Plain())
    optiacts.convert(model)
    if copied == "deepcopy":
        other = copy.deepcopy(model)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    x = sample()
    assert torch.equal(other(x), model(x))
    assert optiacts.saved_memory(other, x).bytes == optiacts.saved_memory(model, x).bytes
    with torch.no_grad():
        other[0].gate.weight.zero_()  # the copy has children of its own
    assert not torch.equal(other(x), model(x))
    optiacts.revert(other)
    assert [type(m) for m in other] == [Gated, Plain]
    assert all(type(m) is not Gated for m in model)


def test_layers_share_one_class() -> None:
    model = nn.Sequential(Gated(), Gated())
    optiacts.convert(model)
    assert type(model[0]) is type(model[1])


def test_compiled_model_keeps_the_saving() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Gated(), Plain(), Gated(nn.ReLU()))
    x = sample()
    optiacts.convert(model)
    expected, gradients = run(model, x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    ours = list(torch.autograd.grad(compiled(x).square().sum(), [x, *model.parameters()], allow_unused=True))
    for a, b in zip(ours, gradients, strict=True):
        torch.testing.assert_close(a if a is not None else torch.zeros_like(b), b, rtol=1e-6, atol=1e-6)
    after = optiacts.saved_memory(compiled, x).bytes
    optiacts.revert(model)
    before = optiacts.saved_memory(torch.compile(model, backend="aot_eager", fullgraph=True), x).bytes
    hidden = 4 * 16 * 4  # compiled PyTorch holds gate, up and h; x and h; act(gate), up and h
    assert before - after >= 2 * hidden - 4 * 4 * 3, (before, after)


def test_without_memory() -> None:
    """A model of fake tensors is converted as a real one, so that a saving can be told before a run."""
    with FakeTensorMode():
        model, x = nn.Sequential(Gated(), Plain()), torch.randn(4, 8, requires_grad=True)
        before = optiacts.saved_memory(model, x).bytes
        assert len(optiacts.convert(model).converted) == 4
        fake = before, optiacts.saved_memory(model, x).bytes
    model = nn.Sequential(Gated(), Plain())
    before = optiacts.saved_memory(model, sample()).bytes
    optiacts.convert(model)
    assert fake == (before, optiacts.saved_memory(model, sample()).bytes)


def test_wrapped_afterwards() -> None:
    model = Gated()
    optiacts.convert(model)
    model.__class__ = type("Wrapped", (type(model),), {})
    with pytest.raises(RuntimeError, match="Wrapped"):
        optiacts.revert(model)
