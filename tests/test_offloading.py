"""Offloading: each storage is moved once, and backward sees what was saved.

The only device here is a CPU: ``far`` takes it for another one than where things are moved to.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import optiacts
from optiacts import offloading

ROWS, WIDTH, HIDDEN = 64, 32, 128
TENSOR, BITS = ROWS * HIDDEN * 4, ROWS * HIDDEN // 8


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading.offload, "_is_there", lambda self, tensor: False)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))


def gradients(model: Any, parameters: Any, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(x).square().sum(), [x, *parameters]))


def test_a_shared_output_is_moved_once() -> None:
    original, model = mlp(), mlp()
    optiacts.convert(model)
    moved = {}
    for name, one in (("PyTorch", original), ("OptiActs", model)):
        x = torch.randn(ROWS, WIDTH, requires_grad=True)
        with optiacts.offload(leave=one) as moving:
            output = one(x)
        output.sum().backward()
        moved[name] = moving.bytes
        assert moving.returned == moving.bytes and moving.storages == {"PyTorch": 3, "OptiActs": 3}[name]
    x_bytes = ROWS * WIDTH * 4
    assert moved == {"PyTorch": x_bytes + 2 * TENSOR, "OptiActs": x_bytes + TENSOR + BITS}

    copied = 0

    def count(tensor: Tensor) -> Tensor:  # what torch.autograd.graph.save_on_cpu does with each saved tensor
        nonlocal copied
        copied += 0 if isinstance(tensor, nn.Parameter) or tensor._base is not None else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(torch.randn(ROWS, WIDTH))
    assert copied == x_bytes + 2 * TENSOR + BITS  # the output twice: nothing is saved by sharing it


@pytest.mark.parametrize("kind", ["gated", "norm", "bert", "conv"])
def test_gradients_are_the_same_to_the_bit(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 32, requires_grad=True)
    models: dict[str, nn.Module] = {
        "gated": nn.Sequential(nn.Linear(32, 64), optiacts.SwiGLU(), nn.Linear(32, 32)),
        "norm": nn.Sequential(optiacts.RMSNorm(32), nn.Linear(32, 32), optiacts.LayerNorm(32), nn.Linear(32, 8)),
        "bert": nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, activation="gelu", batch_first=True),
        "conv": nn.Sequential(nn.Conv1d(16, 8, 3), nn.BatchNorm1d(8), nn.SiLU(), nn.Conv1d(8, 4, 3)),
    }
    model = models[kind].train()
    if kind in ("bert", "conv"):
        optiacts.convert(model)
    wanted = gradients(model, model.parameters(), x)
    with optiacts.offload(min_bytes=0) as moved:
        output = model(x)
    assert moved.bytes > 0 and moved.returned == 0
    found = torch.autograd.grad(output.square().sum(), [x, *model.parameters()])
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_views_share_the_storage_they_lie_in() -> None:
    base = torch.randn(8, 64, requires_grad=True)
    with optiacts.offload() as moved:
        h = base * 1  # (keeps nothing of base)
        one, two = h.chunk(2, dim=1)
        result = (one.T * two.T).sum() + (h[::2, 3:7].square() * h.t()[:4, :4]).sum()
    assert moved.storages == 1 and moved.bytes == h.nbytes
    (found,) = torch.autograd.grad(result, base)
    h = base * 1
    one, two = h.chunk(2, dim=1)
    (wanted,) = torch.autograd.grad((one.T * two.T).sum() + (h[::2, 3:7].square() * h.t()[:4, :4]).sum(), base)
    assert torch.equal(found, wanted)
    assert moved.returned == moved.bytes


def test_a_storage_changed_between_two_saves_is_moved_in_both_states() -> None:
    x = torch.randn(512, requires_grad=True)
    with optiacts.offload() as moved:
        h = x * 1
        first = h.square()  # saves h as it is
        h.mul_(3)  # PyTorch would not allow the first square's backward after this
        second = h.square()
    assert moved.storages == 2
    (found,) = torch.autograd.grad((first + second).sum(), x)
    torch.testing.assert_close(found, 2 * x.detach() + 18 * x.detach())


def test_an_output_changed_in_place_later_is_as_it_was_saved() -> None:
    x = torch.randn(512, requires_grad=True)
    with optiacts.offload():
        y = optiacts.gelu(x * 1)
        z = y.mul_(2)
    (found,) = torch.autograd.grad(z.sum(), x)
    (wanted,) = torch.autograd.grad(2 * optiacts.gelu(x * 1).sum(), x)
    assert torch.equal(found, wanted)


def test_retain_graph_and_parts_of_a_graph() -> None:
    model = mlp()
    optiacts.convert(model)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = gradients(model, model.parameters(), x)
    with optiacts.offload(leave=model) as moved:
        loss = model(x).square().sum()
    (part,) = torch.autograd.grad(loss, model[2].weight, retain_graph=True)
    assert torch.equal(part, wanted[3]) and moved.returned < moved.bytes
    for _ in range(2):
        found = torch.autograd.grad(loss, [x, *model.parameters()], retain_graph=True)
        for one, other in zip(wanted, found, strict=True):
            assert torch.equal(one, other)
    assert moved.bytes < moved.returned <= 3 * moved.bytes


def test_second_derivatives() -> None:
    model = mlp().double()
    optiacts.convert(model)
    x = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)

    def penalty(offloaded: bool) -> tuple[Tensor, ...]:
        with optiacts.offload(min_bytes=0) if offloaded else torch.enable_grad():
            first = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
            return torch.autograd.grad(first.square().sum(), [x, *model.parameters()])

    for one, other in zip(penalty(False), penalty(True), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_an_address_used_again_is_another_storage() -> None:
    """What was moved is freed, and its memory given to the next tensor, all within one forward."""
    x = torch.randn(4096, requires_grad=True)
    with optiacts.offload() as moved:
        h, expected = x * 1, torch.ones_like(x)
        for step in range(20):
            h = (h * (1 + step / 100)).sin()
    assert moved.storages == 20
    (found,) = torch.autograd.grad(h.sum(), x)
    y = x.detach().clone().requires_grad_()
    h = y * 1
    for step in range(20):
        h = (h * (1 + step / 100)).sin()
    (expected,) = torch.autograd.grad(h.sum(), y)
    assert torch.equal(found, expected)


def test_what_stays() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, WIDTH)).eval()
    with optiacts.offload(leave=model, min_bytes=ROWS * HIDDEN * 4) as moved:
        model(torch.randn(ROWS, WIDTH, requires_grad=True))
    held = {storage.shape for storage in optiacts.saved_memory(model, torch.randn(ROWS, WIDTH)).storages}
    assert (ROWS, HIDDEN) in held
    assert moved.storages == 2 and moved.bytes == 2 * ROWS * HIDDEN * 4  # neither weights, buffers nor the input
    with pytest.raises(ValueError, match="min_bytes must be at least 0; got -1"):
        optiacts.offload(min_bytes=-1)


def test_nothing_is_moved_to_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with optiacts.offload("cpu") as moved:
        mlp()(torch.randn(ROWS, WIDTH)).sum().backward()
    assert moved.bytes == moved.storages == 0


def test_with_checkpointing_and_entered_twice() -> None:
    model = mlp()
    optiacts.convert(model)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = gradients(model, model.parameters(), x)
    with optiacts.offload(leave=model) as moved, moved:
        loss = checkpoint(model, x, use_reentrant=False).square().sum()
        inside = moved.bytes
        found = torch.autograd.grad(loss, [x, *model.parameters()])
    assert inside <= 2 * x.nbytes  # what is computed again is not moved
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one, other)


def test_what_was_moved_goes_with_the_graph() -> None:
    with optiacts.offload() as moved:
        output = mlp()(torch.randn(ROWS, WIDTH))
    assert len(moved._known) == moved.storages > 0
    del output
    assert len(moved._known) == 0
