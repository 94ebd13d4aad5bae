"""A detector with the layers of YOLOv8, written from its published structure; it is nobody else's code.

Backbone, neck and head, as YOLOv8's configuration gives them: every convolution but the last two of the head is one
with BatchNorm and SiLU behind it (a ``Unit``). Without a loss, whose assignment of boxes depends on the data; and
without the layer that turns distributions into boxes, which only evaluation runs.

With 80 classes it has 11,166,544 parameters at the scale s, 25,902,624 at m; 11.2 and 25.9 million are published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BINS = 16  # of the distribution of each side of a box
COARSEST = 32  # pixels, each way, of a position of the deepest map


class Unit(nn.Module):
    """Convolution, BatchNorm and SiLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.norm(self.conv(x)))
        return result


class Bottleneck(nn.Module):
    """Two 3 x 3 units, and what went in added if ``residual``."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.first, self.second = Unit(channels, channels, 3), Unit(channels, channels, 3)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(self.first(x))
        return x + change if self.residual else change


class Split(nn.Module):
    """YOLOv8's C2f: half of the channels goes through the bottlenecks, and every result into one concatenation."""

    def __init__(self, inputs: int, outputs: int, blocks: int, residual: bool) -> None:
        super().__init__()
        self.entry = Unit(inputs, outputs)
        self.blocks = nn.ModuleList(Bottleneck(outputs // 2, residual) for _ in range(blocks))
        self.exit = Unit((2 + blocks) * (outputs // 2), outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = [*self.entry(x).chunk(2, 1)]
        for block in self.blocks:
            parts.append(block(parts[-1]))
        result: Tensor = self.exit(torch.cat(parts, 1))
        return result


class Pyramid(nn.Module):
    """YOLOv8's SPPF: what went in and three poolings, each of the one before, side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.entry, self.exit = Unit(channels, channels // 2), Unit(4 * (channels // 2), channels)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.entry(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        result: Tensor = self.exit(torch.cat(parts, 1))
        return result


def _head(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Unit(inputs, inner, 3), Unit(inner, inner, 3), nn.Conv2d(inner, outputs, 1))


class Detector(nn.Module):
    """Images ``(samples, 3, height, width)``, both sizes multiples of 32, to ``(samples, 64 + classes, positions)``.

    Args:
        depth: times the bottlenecks of a block.
        width: times the channels.
        most_channels: before they are multiplied.
        classes: to tell apart.

    ``ValueError`` for numbers that leave a layer without channels.
    """

    def __init__(self, depth: float, width: float, most_channels: int, classes: int) -> None:
        super().__init__()
        if min(width, most_channels, classes) <= 0:
            raise ValueError(
                f"width, most_channels and classes must be above 0; got {width}, {most_channels} and {classes}"
            )
        stem, low, small, middle, large = (_scaled(c, width, most_channels) for c in (64, 128, 256, 512, 1024))
        few, many = (max(round(count * depth), 1) for count in (3, 6))
        self.stem = nn.Sequential(Unit(3, stem, 3, 2), Unit(stem, low, 3, 2), Split(low, low, few, True))
        self.to_small = nn.Sequential(Unit(low, small, 3, 2), Split(small, small, many, True))
        self.to_middle = nn.Sequential(Unit(small, middle, 3, 2), Split(middle, middle, many, True))
        self.to_large = nn.Sequential(Unit(middle, large, 3, 2), Split(large, large, few, True), Pyramid(large))
        self.upsample = nn.Upsample(scale_factor=2)
        self.up_middle = Split(large + middle, middle, few, False)
        self.up_small = Split(middle + small, small, few, False)
        self.down_middle, self.again_middle = Unit(small, small, 3, 2), Split(small + middle, middle, few, False)
        self.down_large, self.again_large = Unit(middle, middle, 3, 2), Split(middle + large, large, few, False)
        maps = (small, middle, large)
        of_boxes, of_classes = max(16, small // 4, 4 * BINS), max(small, min(classes, 100))
        self.boxes = nn.ModuleList(_head(channels, of_boxes, 4 * BINS) for channels in maps)
        self.classes = nn.ModuleList(_head(channels, of_classes, classes) for channels in maps)

    def forward(self, images: Tensor) -> Tensor:
        small = self.to_small(self.stem(images))
        middle = self.to_middle(small)
        large = self.to_large(middle)
        middle = self.up_middle(torch.cat((self.upsample(large), middle), 1))
        small = self.up_small(torch.cat((self.upsample(middle), small), 1))
        middle = self.again_middle(torch.cat((self.down_middle(small), middle), 1))
        large = self.again_large(torch.cat((self.down_large(middle), large), 1))
        found = [
            torch.cat((boxes(x), classes(x)), 1).flatten(2)
            for boxes, classes, x in zip(self.boxes, self.classes, (small, middle, large), strict=True)
        ]
        return torch.cat(found, 2)


def _scaled(channels: int, width: float, most: int) -> int:
    """The next multiple of 8."""
    return -int(-min(channels, most) * width // 8) * 8
