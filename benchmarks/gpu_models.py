"""Whole training steps of real models on a GPU, as they are and converted: the loss, memory and time.

The models are the report's presets, with random weights. One model is in memory at a time; it is measured plain,
converted, converted, plain (A B B A), so that drifts hit both alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

import optiacts
from optiacts.reporting.build import Setting, build
from optiacts.reporting.data import Measured
from optiacts.reporting.loss import scalar
from optiacts.reporting.measure import measure

Report = dict[str, Any]
STEPS = 5  # timed, in each of the four turns

CASES: dict[str, Setting] = {
    "mistral-7b": Setting(),
    "llama-3-8b": Setting(train_mode="lora"),
    "bert-base": Setting(batch=16, seq=512, dtype="float32", loss=False),
    "gpt2-xl": Setting(batch=4, seq=1024),
}
COMPILED: dict[str, Setting] = {
    "bert-base": Setting(batch=16, seq=512, overrides={"num_hidden_layers": 4}),
    "llama-3-8b": Setting(overrides={"num_hidden_layers": 4}),
}


def models(device: torch.device, dry: bool) -> list[Report]:
    """Whole models, eager."""
    return [] if dry else [_model(name, setting, compiled=False) for name, setting in CASES.items()]


def compiled_models(device: torch.device, dry: bool) -> list[Report]:
    """Models of a few layers, compiled; plain and then converted, since each compilation takes long."""
    return [] if dry else [_model(name, setting, compiled=True) for name, setting in COMPILED.items()]


def _model(name: str, setting: Setting, compiled: bool) -> Report:
    torch.manual_seed(0)
    with torch.device("cuda"):
        built = build(name, setting)
        _fill(built.model)
        for key, value in built.kwargs.items():
            if value.dtype == torch.long and "input_ids" in built.kwargs:
                built.kwargs[key] = torch.randint_like(value, 1000)
    model, kwargs = built.model, built.kwargs
    losses: dict[str, float] = {}
    memory: dict[str, Measured] = {}
    times: dict[str, list[float]] = {"plain": [], "converted": []}
    for turn in ("plain", "converted") if compiled else ("plain", "converted", "converted", "plain"):
        optiacts.revert(model)
        if turn == "converted":
            optiacts.convert(model)
        run: Any = model
        if compiled:
            torch.compiler.reset()
            run = torch.compile(model)
        if turn not in memory:
            losses[turn] = _loss(run, kwargs)
            memory[turn] = measure(turn, run, (), kwargs)
        times[turn] += _times(run, kwargs)
    plain, converted = memory["plain"], memory["converted"]
    row = {
        "model": name,
        "setting": ", ".join([*built.setting.values(), "compiled" if compiled else "eager"]),
        "loss equal to the bit": losses["plain"] == losses["converted"],
        "held GiB": plain.after_forward / 2**30,
        "held, converted GiB": converted.after_forward / 2**30,
        "peak GiB": plain.peak / 2**30,
        "peak, converted GiB": converted.peak / 2**30,
        "step ms": statistics.median(times["plain"]) * 1e3,
        "converted time / plain": statistics.median(times["converted"]) / statistics.median(times["plain"]),
    }
    del built, model, kwargs, run  # before the next one is built
    torch.cuda.empty_cache()
    return row


@torch.no_grad()
def _fill(model: torch.nn.Module) -> None:
    """Values of the usual size for weights that were only allocated."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _loss(run: Callable[..., Any], kwargs: dict[str, Any]) -> float:
    torch.manual_seed(1)  # of dropouts
    return float(scalar(run(**kwargs)))


def _times(run: Callable[..., Any], kwargs: dict[str, Any]) -> list[float]:
    scalar(run(**kwargs)).backward()
    found = []
    for _ in range(STEPS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        scalar(run(**kwargs)).backward()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return found
