"""Convolutional nets as detectors have them: convolution, BatchNorm and SiLU in one module, in CSP blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.entry import Entry, normal


class Conv(nn.Module):
    """Convolution, norm, activation; one activation module serves all of them."""

    act = nn.SiLU(inplace=True)

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels, 3), Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Every bottleneck's output goes to one concatenation."""

    def __init__(self, channels: int, blocks: int = 1) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels), Conv((2 + blocks) * channels // 2, channels)
        self.m = nn.ModuleList(Bottleneck(channels // 2) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3(nn.Module):
    """Cross stage partial: one half goes through the bottlenecks."""

    def __init__(self, channels: int, blocks: int = 1) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(channels, channels // 2)
        self.cv3 = Conv(channels, channels)
        self.m = nn.Sequential(*(Bottleneck(channels // 2) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


def backbone(block: Callable[[int], nn.Module], width: int = 8) -> nn.Module:
    """Three stages, each at half the size, and a head of one convolution."""
    layers = (
        Conv(3, width, 3, 2), Conv(width, 2 * width, 3, 2), block(2 * width),
        Conv(2 * width, 4 * width, 3, 2), block(4 * width), nn.Conv2d(4 * width, 8, 1),
    )  # fmt: skip
    return copy.deepcopy(nn.Sequential(*layers))  # with an activation of its own


def _inverted() -> nn.Module:
    """Inverted residuals of ``Sequential`` parts, as torchvision's nets are written."""

    def part(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))

    return nn.Sequential(
        part(3, 8, 3),
        nn.Sequential(part(8, 32, 1), part(32, 32, 3, groups=32), nn.Conv2d(32, 8, 1, bias=False), nn.BatchNorm2d(8)),
        part(8, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Excitation(nn.Module):
    """Squeeze and excitation, as MobileNet v3 has it (arXiv 1905.02244)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(scale)) * x


class MobileBlock(nn.Module):
    """A bottleneck of MobileNet v3, as torchvision writes it."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()

        def part(inputs: int, outputs: int, size: int, groups: int = 1, act: bool = True) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.Hardswish(inplace=True)] if act else []))

        self.block = nn.Sequential(
            part(channels, expanded, 1),
            part(expanded, expanded, 3, groups=expanded),
            Excitation(expanded),
            part(expanded, channels, 1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def _mobile() -> nn.Module:
    """A stem, bottlenecks and a classifier of MobileNet v3."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)),
        MobileBlock(8, 32),
        MobileBlock(8, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Sequential(nn.Linear(8, 64), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(64, 10)),
    )


_picture = normal(input=(3, 32, 32))

ENTRIES = (
    Entry("YOLO-like backbone, C2f", lambda: backbone(C2f), _picture),
    Entry("YOLO-like backbone, C3", lambda: backbone(C3), _picture),
    Entry("inverted residuals in Sequentials", _inverted, _picture),
    Entry("MobileNet v3, bottlenecks", _mobile, _picture),
)
