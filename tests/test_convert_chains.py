"""Models converted with chains: what is held, what the report says, and what is left alone."""

import copy
from functools import partial

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from zoo.convolutional import C2f, Conv, backbone

import optiacts


def yolo() -> nn.Module:
    torch.manual_seed(0)
    return backbone(partial(C2f, blocks=2), width=16)


def gradients(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    y = model(*inputs)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return y, list(torch.autograd.grad(y, list(model.parameters()), grad))


def test_a_yolo_like_net_holds_less_than_half() -> None:
    model, x = yolo(), torch.randn(2, 3, 64, 64)
    plain, without = copy.deepcopy(model), copy.deepcopy(model)
    report = optiacts.convert(model)
    optiacts.convert(without, chains=False)
    y, ours = gradients(model, x)
    theirs, wanted = gradients(plain, x)
    assert torch.equal(y, theirs)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    for a, b in zip(ours, wanted, strict=True):
        assert (a - b).norm() <= 2e-5 * b.norm()
    held = [optiacts.saved_memory(m, x).bytes for m in (plain, without, model)]
    assert held[2] < 0.5 * held[0]
    assert held[2] < 0.7 * held[1]
    assert sum(entry.what == "BatchNorm + silu" for entry in report.converted) == 15
    assert not report.left


def test_concatenated_outputs_are_chained_too() -> None:
    """Nobody else keeps them: two tensors become one."""
    model, x = copy.deepcopy(C2f(32, blocks=2)), torch.randn(2, 32, 16, 16)
    report = optiacts.convert(model, example_inputs=x)
    assert sum(entry.what == "BatchNorm + silu" for entry in report.converted) == 6
    before, after = report.saved_bytes or (0, 0)
    assert after < 0.67 * before  # its own input and what is concatenated are held as before
    assert optiacts.saved_memory(model, x).bytes == after


@pytest.mark.parametrize("name", ["down", "up"])
def test_diffusers_blocks(name: str) -> None:
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=16, groups=8, **{name: True})
    plain = copy.deepcopy(block)
    report = optiacts.convert(block)
    assert any(entry.what == "GroupNorm + silu" for entry in report.converted)
    x, temb = torch.randn(2, 32, 16, 16), torch.randn(2, 16)
    (y, ours), (theirs, wanted) = gradients(block, x, temb), gradients(plain, x, temb)
    assert torch.equal(y, theirs)
    for a, b in zip(ours, wanted, strict=True):
        assert (a - b).norm() <= 2e-5 * b.norm() + 1e-4 * b.numel() ** 0.5 * (b.norm() < 1e-2)
    saved = [optiacts.saved_memory(m, x, temb).bytes for m in (plain, block)]
    assert saved[1] < 0.62 * saved[0]


def test_the_switch_and_the_way_back() -> None:
    model, x = yolo(), torch.randn(1, 3, 32, 32)
    held = optiacts.saved_memory(model, x).bytes
    report = optiacts.convert(model, chains=False)
    assert not any("+" in entry.what for entry in report.converted)
    optiacts.revert(model)
    optiacts.convert(model)
    optiacts.revert(model)
    assert optiacts.saved_memory(model, x).bytes == held
    assert all(type(module).__module__ != "optiacts" for module in model.modules())


def test_selection_counts_for_norm_and_activation() -> None:
    for excluded in ("2", "1"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 3, 3))
        report = optiacts.convert(model, exclude=excluded)
        assert not any("+" in entry.what for entry in report.converted)
    model = yolo()
    report = optiacts.convert(model, exclude="*.bn")
    assert not any("+" in entry.what for entry in report.converted)


def test_other_activations_are_left_with_the_reason() -> None:
    class Net(Conv):
        act = nn.GELU()  # type: ignore[assignment]

    report = optiacts.convert(Net(3, 8))
    (left,) = [entry for entry in report.left if "+" in entry.reason]
    assert (
        left.reason
        == "BatchNorm + gelu: the output of gelu does not tell its input everywhere, and so not the norm's"
    )


def test_sync_batch_norm_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8), nn.SiLU())
    report = optiacts.convert(model)
    assert [entry.reason for entry in report.left if entry.kind == "SyncBatchNorm"] == [
        "its statistics are those of several devices"
    ]


def test_an_output_changed_in_place_is_found_before() -> None:
    class Net(Conv):
        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.bn(self.conv(x)))
            y += 1
            return y

    report = optiacts.convert(copy.deepcopy(Net(3, 8)))
    assert any("BatchNorm + silu: its output is changed in place" in entry.reason for entry in report.left)


def test_trained_weights_move_and_the_chain_stays_right() -> None:
    torch.manual_seed(0)
    model, x = yolo(), torch.randn(2, 3, 32, 32)
    optiacts.convert(model)
    plain = copy.deepcopy(model)
    optiacts.revert(plain)
    for net in (model, plain):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_the_report_counts_chains_on_cuda() -> None:
    x = torch.randn(2, 3, 32, 32)
    here, there = (optiacts.report(yolo(), x, like_cuda=like_cuda) for like_cuda in (False, True))
    names = [[stage.name for stage in made.stages] for made in (here, there)]
    assert names[0][-1] == "norms and activations in one"
    assert names[1][-1] == "norms and activations in one"
    assert here.stages[-1].bytes == there.stages[-1].bytes


@pytest.mark.parametrize("act", [nn.LeakyReLU(), nn.LeakyReLU(0.2, inplace=True), nn.ELU(), nn.CELU(0.5)], ids=str)
def test_closed_forms(act: nn.Module) -> None:
    """One tensor and no bit, in a function and in a ``Sequential``."""

    class Net(Conv):
        pass

    Net.act = act  # type: ignore[assignment]
    for block in (Net(3, 8), nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), act)):
        plain, x = copy.deepcopy(block), torch.randn(4, 3, 16, 16)
        report = optiacts.convert(block)
        assert any("BatchNorm + " in entry.what for entry in report.converted)
        (y, ours), (theirs, wanted) = gradients(block, x), gradients(plain, x)
        assert torch.equal(y, theirs)
        for a, b in zip(ours, wanted, strict=True):
            assert (a - b).norm() <= 2e-6 * b.norm()
        held, before = (optiacts.saved_memory(model, x).bytes for model in (block, plain))
        assert held <= y.nbytes + x.nbytes + 4 * 4 * 8
        assert before >= 2 * y.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_is_left_apart_in_16_bits(dtype: torch.dtype) -> None:
    """Its gradient would err more than the contract allows: told by the parameters, or when it runs."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.RMSNorm(64, eps=1e-5), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norm(x))  # type: ignore[no-any-return]

    x = torch.randn(256, 64)
    grad = (torch.randn(x.shape) + x).to(dtype)
    x = x.to(dtype)
    for before in (False, True):
        for make in (Net, lambda: nn.Sequential(nn.RMSNorm(64, eps=1e-5), nn.SiLU())):
            model = make()
            plain, wide = copy.deepcopy(model).to(dtype), copy.deepcopy(model).double()
            model = model.to(dtype) if before else model
            report = optiacts.convert(model)
            chained = any("+" in entry.what for entry in report.converted)
            assert chained is (dtype is torch.float32 or not before)
            model = model.to(dtype)
            inputs = [x.clone().requires_grad_(), x.clone().requires_grad_(), x.double().requires_grad_()]
            outputs = [net(own) for net, own in zip((model, plain, wide), inputs, strict=True)]
            assert torch.equal(outputs[0], outputs[1])
            assert ("Chain" in outputs[0].grad_fn.name()) is (dtype is torch.float32)
            found = [
                torch.autograd.grad(y, own, grad.to(y.dtype))[0].double()
                for y, own in zip(outputs, inputs, strict=True)
            ]
            off = [(a - found[2]).norm() for a in found[:2]]
            assert off[0] <= max({torch.bfloat16: 2.0, torch.float16: 3.5}.get(dtype, 0) * off[1], 5e-6 * x.norm())


def test_steep_closed_forms_are_left_with_the_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.0005))
    report = optiacts.convert(model)
    assert not any("+" in entry.what for entry in report.converted)
