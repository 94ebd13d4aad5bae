"""Gated products that keep their inputs, where nobody else keeps the product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optiacts
from optiacts import curves

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pair(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor]:
    gate, up = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
    return gate, up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", curves.GATES)
def test_output_and_gradients_are_pytorchs(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up = pair(dtype, 33, 50)
    grad = torch.randn(33, 50).to(dtype)
    due = curves.get(name).forward(gate) * up
    found = optiacts.gated(gate, up, name, keep_output=False)
    assert torch.equal(found, due)
    expected = torch.autograd.grad(due, (gate, up), grad)
    for ours, theirs in zip(torch.autograd.grad(found, (gate, up), grad), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("frozen", ["gate", "up"])
def test_one_gradient(frozen: str) -> None:
    gate, up = pair(torch.float32, 8, 8)
    (gate if frozen == "gate" else up).requires_grad_(False)
    found = torch.autograd.grad(optiacts.swiglu(gate, up, keep_output=False).sum(), up if frozen == "gate" else gate)
    due = torch.autograd.grad((F.silu(gate) * up).sum(), up if frozen == "gate" else gate)
    assert torch.equal(found[0], due[0])


def test_derivatives() -> None:
    torch.manual_seed(0)
    gate, up = pair(torch.float64, 3, 4)

    def product(gate: Tensor, up: Tensor) -> Tensor:
        return optiacts.geglu(gate, up, keep_output=False)

    assert torch.autograd.gradcheck(product, (gate, up))
    assert torch.autograd.gradgradcheck(product, (gate, up))


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_bytes(dtype: torch.dtype) -> None:
    """Two tensors, whether of one projection or of two; the arguments of a function count, too."""
    gate, up = pair(dtype, 16, 24)
    both = torch.cat([gate, up], dim=-1).detach().requires_grad_()
    due = 2 * gate.nbytes
    assert optiacts.saved_memory(lambda: optiacts.swiglu(gate, up, keep_output=False)).bytes == due
    assert optiacts.saved_memory(lambda: optiacts.swiglu(both, keep_output=False)).bytes == due


@pytest.mark.parametrize("name", curves.GATES)
def test_autocast(name: str) -> None:
    """What autocast widens in the forward is as wide when it is evaluated again."""
    torch.manual_seed(0)
    gate, up = pair(torch.bfloat16, 9, 16)
    results = []
    for forward in (lambda: curves.get(name).forward(gate) * up, lambda: optiacts.gated(gate, up, name, False)):
        with torch.autocast("cpu", torch.bfloat16):
            h = forward()
        results.append((h, *torch.autograd.grad(h, (gate, up), torch.ones_like(h))))
    for theirs, ours in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_compiled_and_transformed() -> None:
    """There the call is PyTorch's expression, or our own product."""
    gate, up = pair(torch.float32, 4, 8)

    def loss(gate: Tensor, up: Tensor) -> Tensor:
        return optiacts.swiglu(gate, up, keep_output=False).sum()

    due = torch.autograd.grad((F.silu(gate) * up).sum(), (gate, up))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for found in (
        torch.autograd.grad(compiled(gate, up), (gate, up)),
        torch.func.grad(loss, argnums=(0, 1))(gate.detach(), up.detach()),
    ):
        torch.testing.assert_close(found, due)


class MLP(nn.Module):
    """A gated MLP."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class AddedDropout(nn.Module):
    """A frozen projection, and another one behind a dropout: an adapter."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.parts = nn.ModuleDict({"down": nn.Linear(16, 2), "up": nn.Linear(2, 16), "drop": nn.Dropout(0.1)})

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts
        return self.base(x) + parts["up"](parts["down"](parts["drop"](x)))


def test_conversion_of_a_frozen_projection() -> None:
    """With example inputs; without, something that keeps the product may still be added."""
    x = torch.randn(8, 16)
    plain, tried = MLP(), MLP()
    for model in (plain, tried):
        model.down.requires_grad_(False)
    before = optiacts.saved_memory(plain, x).bytes
    assert [entry.what for entry in optiacts.convert(plain).converted] == ["silu gate"]
    report = optiacts.convert(tried, example_inputs=x)
    assert [entry.what for entry in report.converted] == ["silu gate (keeps gate and up)"]
    tensor = x.nbytes
    assert before == 4 * tensor  # x, gate, silu(gate) and up
    assert optiacts.saved_memory(tried, x).bytes == 3 * tensor
    assert report.saved_bytes == (before, 3 * tensor)


def test_conversion_behind_an_adapter_with_dropout() -> None:
    """Nobody can read who keeps the product there; the trial tells."""
    torch.manual_seed(0)
    model = MLP()
    model.down = AddedDropout(model.down)  # type: ignore[assignment]
    x = torch.randn(8, 16)
    losses = []
    for convert in (False, True):
        if convert:
            report = optiacts.convert(model, example_inputs=x)
            assert "silu gate (keeps gate and up)" in [entry.what for entry in report.converted]
            assert optiacts.saved_memory(model, x).bytes == report.saved_bytes[1] < report.saved_bytes[0]
        torch.manual_seed(1)
        loss = model(x).square().sum()
        losses.append((loss, *torch.autograd.grad(loss, list(model.gate.parameters()))))
    for theirs, ours in zip(*losses, strict=True):
        assert torch.equal(ours, theirs)


def test_a_trained_projection_keeps_the_product() -> None:
    report = optiacts.convert(MLP(), example_inputs=torch.randn(8, 16))
    assert [entry.what for entry in report.converted] == ["silu gate"]
