"""Small instances of well-known models, built from their configurations: for the tests and for model_table.py."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from zoo import (
    audio,
    blocks,
    convolutional,
    diffusion,
    encoders,
    films,
    language,
    multimodal,
    recurrent,
    seq2seq,
    speaking,
    training,
    unets,
    vision,
)
from zoo.entry import BATCH, LENGTH, VOCABULARY, Entry

__all__ = ["BATCH", "LENGTH", "VOCABULARY", "ZOO", "Entry", "build", "cast", "first_tensor", "inputs", "seed"]

_TRANSFORMERS = (language, recurrent, encoders, seq2seq, vision, multimodal, audio, speaking)
_DIFFUSERS = (unets, diffusion, films)
ZOO: tuple[Entry, ...] = tuple(
    entry for field in (*_TRANSFORMERS, *_DIFFUSERS, convolutional, blocks, training) for entry in field.ENTRIES
)


def seed(number: int) -> None:
    """Seeds everything that models draw from: dropped layers come from Python, masks from NumPy."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def build(entry: Entry, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with weights from a fixed seed."""
    seed(0)
    model = entry.build()
    _enliven(model)
    return model.to(dtype)


def inputs(entry: Entry, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Its inputs from a fixed seed, floating ones in ``dtype``."""
    seed(1)
    return cast(entry.inputs(), dtype)


def cast(values: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Those inputs with floating ones in ``dtype``."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def first_tensor(output: Any) -> Tensor:
    """The main tensor of whatever a model returns."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


@torch.no_grad()
def _enliven(model: nn.Module) -> None:
    """Weights as after some training: none is constant, and activations get inputs on both sides of their minimum."""
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.numel() < 2 or not weight.is_floating_point():
                continue
            if weight.min() == weight.max():
                weight.add_(0.1 * torch.randn_like(weight))
            elif sum(size > 1 for size in weight.shape) > 1:  # a matrix, not a gain
                is_convolution = isinstance(module, nn.modules.conv._ConvNd)
                fan_in = weight[0].numel() if is_convolution else weight.shape[-1]
                weight.mul_((fan_in**-0.5 / weight.std()).clamp(min=1))
