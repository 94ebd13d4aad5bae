"""The detector that reports know: its size, what it computes converted, and what it holds."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import optiacts
from optiacts.reporting import conversion, report
from optiacts.reporting.build import Setting, build
from optiacts.reporting.detector import Detector
from optiacts.reporting.presets import PRESETS

INTEGRAL = 16  # fixed weights of the layer that only evaluation runs, which are counted in what is published
NORMS = 57


def small() -> Detector:
    torch.manual_seed(0)
    return Detector(depth=0.33, width=0.125, most_channels=1024, classes=5).train()


@pytest.mark.parametrize(("name", "published"), [("yolov8s-like", 11_166_560), ("yolov8m-like", 25_902_640)])
def test_parameters_are_as_many_as_published(name: str, published: int) -> None:
    with FakeTensorMode():
        built = build(name, Setting(batch=2, image_size=64))
    assert sum(parameter.numel() for parameter in built.model.parameters()) == published - INTEGRAL
    (images,) = built.args
    assert images.shape == (2, 3, 64, 64) and built.setting["batch"] == "2 images of 64 x 64"


def test_every_norm_is_one_step_with_its_activation_and_nothing_else_changes() -> None:
    model, images = small(), torch.randn(2, 3, 64, 64)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    done = optiacts.convert(model)
    assert sum(entry.what == "BatchNorm + silu" for entry in done.converted) == NORMS and not done.left
    assert sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules()) == NORMS
    losses = [net(images.to(next(net.parameters()).dtype)).square().mean() for net in (model, plain, exact)]
    assert torch.equal(losses[0], losses[1])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    for loss in losses:
        loss.backward()
    ours, theirs = (max(errors(net, exact)) for net in (model, plain))
    assert ours <= 1.5 * theirs


def errors(model: nn.Module, exact: nn.Module) -> list[float]:
    """Of the gradient of each parameter, relative."""
    pairs = zip(model.parameters(), exact.parameters(), strict=True)
    return [float((a.grad - b.grad).norm() / b.grad.norm()) for a, b in pairs]  # type: ignore[operator, union-attr]


def test_the_report_tells_the_bytes_that_are_held() -> None:
    images = torch.randn(2, 3, 64, 64)
    predicted = report(small(), images, peak=False)
    assert [stage.name for stage in predicted.stages][-1] == "norms and activations in one"
    for stage in predicted.stages:
        model = small()
        if stage.name != "now":
            conversion.convert_stage(model, stage.name, predicted.sites)
        assert stage.bytes == sum(stage.kinds.values()) == optiacts.saved_memory(model, images).bytes, stage.name
    assert predicted.stages[-1].bytes < 0.5 * predicted.now.bytes


def test_the_entries_of_the_preset_can_be_set() -> None:
    with FakeTensorMode():
        built = build("yolov8s-like", Setting(batch=2, image_size=32, overrides={"classes": 3, "width": 0.125}))
        (images,) = built.args
        assert built.model(images).shape == (2, 64 + 3, 16 + 4 + 1)
    assert PRESETS["yolov8s-like"]["classes"] == 80
