"""``optiacts report``: the report on the command line."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts.reporting import conversion
from optiacts.reporting.analysis import ACTIVATIONS, GATED, NOW
from optiacts.reporting.analysis import report as make_report
from optiacts.reporting.build import ATTENTIONS, DTYPES, Setting, build
from optiacts.reporting.data import Measured, MemoryReport
from optiacts.reporting.errors import ReportError
from optiacts.reporting.lora import TRAIN_MODES
from optiacts.reporting.measure import measure as measure_step
from optiacts.reporting.measure import require_cuda
from optiacts.reporting.plot import plot as draw
from optiacts.reporting.presets import PRESETS
from optiacts.reporting.states import OPTIMIZERS

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A callback: "24GiB" in bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise click.BadParameter(f"{value!r} is not a size; give one such as 24GiB or 80GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _overrides(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """A callback: "key=value" pairs with their values read as JSON, or as text."""
    found: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE; give one such as num_hidden_layers=2")
        found[key] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@click.command(name="report")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--batch", default=1, show_default=True, help="Samples in a step.")
@click.option("--seq", type=int, help="Tokens in a sample. [default: as many as the model allows, at most 4096]")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--attention", type=click.Choice(ATTENTIONS), default="sdpa", show_default=True)
@click.option("--train-mode", type=click.Choice(TRAIN_MODES), default="full", show_default=True)
@click.option("--loss/--no-loss", default=True, show_default=True, help="With its head and loss, or the bare model.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_overrides,
    help="Change an entry of the config.",
)
@click.option("--optimizer", type=click.Choice(list(OPTIMIZERS)), default="adamw", show_default=True)
@click.option("--gpu-memory", metavar="SIZE", callback=_memory, help="Tell the largest batch that fits, e.g. 24GiB.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object for one model, else a list.")
@click.option("--plot", "plot_file", metavar="FILE", help="Draw a picture (.png, .svg, .pdf).")
@click.option("--measure", is_flag=True, help="Run a real step on a CUDA GPU beside the prediction.")
def report(
    models: tuple[str, ...],
    batch: int,
    seq: int | None,
    dtype: str,
    attention: str,
    train_mode: str,
    loss: bool,
    overrides: dict[str, Any],
    optimizer: str,
    gpu_memory: int | None,
    as_json: bool,
    plot_file: str | None,
    measure: bool,
) -> None:
    """How much memory will I save, before I rent the GPU.

    MODEL is a preset, the path of a Hugging Face config.json, or module:function, where the function returns
    (model, inputs). Everything runs on fake tensors: no weights, no GPU, no network.
    """
    try:
        if measure:
            require_cuda()
        setting = Setting(batch, seq, dtype, attention, train_mode, loss, overrides)
        reports = [_one(name, setting, optimizer, gpu_memory, measure, quiet=as_json) for name in models]
        if plot_file is not None:
            draw(reports, plot_file)
    except ReportError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        data = [made.to_dict() for made in reports]
        click.echo(json.dumps(data[0] if len(data) == 1 else data, indent=2))
    else:
        _show(reports)


report.epilog = "Presets: " + ", ".join(PRESETS)


def _one(
    name: str, setting: Setting, optimizer: str, gpu_memory: int | None, measure: bool, quiet: bool
) -> MemoryReport:
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    with console.status(f"{name}: building it on fake tensors") as status, _no_chatter():
        with FakeTensorMode(allow_non_fake_inputs=True):
            built = build(name, setting)
        made = make_report(
            built.model,
            *built.args,
            optimizer=optimizer,
            gpu_memory=gpu_memory,
            like_cuda=True,
            name=name,
            setting=built.setting,
            progress=lambda what: status.update(f"{name}: {what}"),
            **built.kwargs,
        )
        if measure:
            status.update(f"{name}: measuring on the GPU")
            made = dataclasses.replace(made, measured=_measured(name, setting, made))
    return made


def _measured(name: str, setting: Setting, made: MemoryReport) -> tuple[Measured, ...]:
    with torch.device("cuda"):
        built = build(name, setting)
        results = []
        for stage in made.stages:
            convert = {NOW: None, ACTIVATIONS: conversion.convert_activations, GATED: conversion.convert_gated}[
                stage.name
            ]
            if convert is not None:
                convert(built.model, made.sites)
            results.append(measure_step(stage.name, built.model, built.args, built.kwargs))
    return tuple(results)


@contextmanager
def _no_chatter() -> Iterator[None]:
    """Libraries' warnings about training and configs are no news in a report."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _show(reports: list[MemoryReport]) -> None:
    from rich.console import Console

    from optiacts.reporting.table import rich_tables

    console = Console(soft_wrap=False)
    for made in reports:
        for part in rich_tables(made):
            console.print(part)
            console.print()
