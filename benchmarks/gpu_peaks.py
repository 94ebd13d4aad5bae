"""The peaks of steps that the report predicts, beside `max_memory_allocated`: of models that need torch alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from report_calibration import observed
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from optiacts.demo.gpt import GPT, VOCABULARY
from optiacts.reporting.conversion import CONVERSIONS, convert_stage
from optiacts.reporting.measure import measure
from optiacts.reporting.optimizers import OPTIMIZERS

Report = dict[str, Any]


class Trained(nn.Module):
    """A model with its loss: the cross-entropy of its last dimension."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(x).flatten(0, -2).float(), labels.flatten())


class Encoder(nn.Module):
    """torch.nn's own layers, with their dropouts."""

    def __init__(self, width: int, layers: int, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def _gpt(dry: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    width, layers, batch, tokens = (64, 2, 4, 32) if dry else (1024, 12, 8, 1024)
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    return GPT(nn.GELU, width, layers, width // 64, tokens), {"x": ids, "labels": ids % VOCABULARY}


def _encoder(dry: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    width, layers, batch, tokens = (64, 2, 4, 32) if dry else (1024, 12, 8, 1024)
    labels = torch.zeros(batch, tokens, dtype=torch.long)
    return Encoder(width, layers, 1000), {"x": torch.zeros(batch, tokens, width), "labels": labels}


def _convolutions(dry: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    wide, batch, side = (8, 2, 16) if dry else (128, 32, 112)
    blocks = [(nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.SiLU()) for _ in range(2 if dry else 8)]
    model = nn.Sequential(*(part for block in blocks for part in block), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model, {"x": torch.zeros(batch, wide, side, side), "labels": torch.zeros(batch, dtype=torch.long)}


class Case(NamedTuple):
    """A model that is made, its dtype, and its optimizer."""

    name: str
    make: Callable[[bool], tuple[nn.Module, dict[str, Tensor]]]
    dtype: torch.dtype = torch.float32
    optimizer: str = "adamw"


CASES = (
    Case("GPT", _gpt, torch.bfloat16),
    Case("GPT", _gpt),
    Case("torch.nn's encoder layers", _encoder, torch.bfloat16),
    Case("torch.nn's encoder layers, SGD", _encoder, optimizer="sgd"),
    Case("convolutions with BatchNorm and SiLU", _convolutions, torch.bfloat16, "sgd"),
)


def peaks(device: torch.device, dry: bool) -> list[Report]:
    """Each model as it is and after each stage of conversion.

    A dry run measures what the CPU's allocator gives out, in one setting of each model.
    What was allocated before (cuBLAS's workspaces among it) is left out of the measured peak.
    """
    cases = {case.make: case for case in CASES}.values() if dry else CASES
    return [row for case in cases for row in _rows(case, device, dry)]


def _rows(case: Case, device: torch.device, dry: bool) -> list[Report]:
    torch.manual_seed(0)
    model, inputs = case.make(dry)
    model = Trained(model).to(case.dtype)
    inputs = {name: value.to(case.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    keywords: dict[str, Any] = inputs
    said = optiacts.report(model, optimizer=case.optimizer, like_cuda=not dry, **keywords)
    before = 0 if dry else _before(device, case.dtype)
    model.to(device)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    rows = []
    for stage in said.stages:
        if stage.name in CONVERSIONS:
            convert_stage(model, stage.name, said.sites)
        real = observed(model, inputs, None, case.optimizer) if dry else _measured(model, inputs, case.optimizer)
        assert stage.peak is not None
        row: Report = {"model": case.name, "dtype": str(case.dtype).removeprefix("torch."), "stage": stage.name}
        row |= {"phase": stage.peak.phase, "predicted MiB": stage.peak.bytes / 2**20}
        row |= {"measured MiB": (real - before) / 2**20, "error": stage.peak.bytes / (real - before) - 1}
        rows.append(row)
    return rows


def _measured(model: nn.Module, inputs: dict[str, Tensor], optimizer: str) -> int:
    training = OPTIMIZERS[optimizer](list(model.parameters()), None)
    return measure("", model, (), inputs, training).peak


def _before(device: torch.device, dtype: torch.dtype) -> int:
    """What is allocated before there is a model: both threads' workspaces of cuBLAS are there after a product."""
    product = nn.Linear(64, 64, device=device, dtype=dtype)
    product(torch.ones(64, 64, device=device, dtype=dtype)).sum().backward()
    del product
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()
