"""``optiacts report``: the report on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from optiacts._torch import FakeMode
from optiacts.held.fake import autocasting
from optiacts.held.garbage import without_collection
from optiacts.reporting import conversion, spreadsheet
from optiacts.reporting.analysis import report as make_report
from optiacts.reporting.build import build
from optiacts.reporting.data import Measured, MemoryReport
from optiacts.reporting.errors import ReportError
from optiacts.reporting.lora import Lora
from optiacts.reporting.measure import measure as measure_step
from optiacts.reporting.measure import require_cuda
from optiacts.reporting.names import ADAPTED
from optiacts.reporting.optimizers import OPTIMIZERS
from optiacts.reporting.plot import check as check_plot
from optiacts.reporting.plot import plot as draw
from optiacts.reporting.progress import Progress, shown
from optiacts.reporting.setting import DTYPES, Setting
from optiacts.reporting.table import markdown, rich_tables


def run(chosen: argparse.Namespace) -> int:
    """Makes the reports that were asked for and prints them; ``ReportError`` for what cannot be done."""
    if chosen.measure:
        require_cuda()
    if chosen.plot is not None:
        check_plot(chosen.plot)
    setting = Setting(
        chosen.batch,
        chosen.seq,
        chosen.dtype,
        chosen.attention,
        chosen.train_mode,
        chosen.loss,
        chosen.autocast,
        dict(chosen.overrides),
        _adapters(chosen),
        chosen.tokens,
        chosen.image_size,
    )
    with shown(quiet=chosen.json or chosen.csv) as progress:
        reports = [_one(name, setting, chosen, progress) for name in chosen.models]
    if chosen.json:
        data = [made.to_dict() for made in reports]
        print(json.dumps(data[0] if len(data) == 1 else data, indent=2))
    elif chosen.csv:
        print(spreadsheet.lines(reports), end="")
    else:
        _show(reports)
    if chosen.plot is not None:  # after what was asked for in any case
        draw(reports, chosen.plot)
    return 0


def _adapters(chosen: argparse.Namespace) -> Lora:
    """What is said of them; ``ReportError`` where nothing would have any."""
    said = {name: getattr(chosen, f"lora_{name}") for name in ("rank", "targets", "dropout", "dtype")}
    said = {name: value for name, value in said.items() if value is not None}
    runs_choices = chosen.gpu_memory and chosen.choices and not chosen.shard and not chosen.checkpoint
    if said and chosen.train_mode not in ADAPTED and not (runs_choices and chosen.train_mode == "full"):
        raise ReportError(
            f"--lora-{next(iter(said))}: nothing here has adapters; give --train-mode lora or qlora, or --gpu for "
            "the choices that have them"
        )
    if "dtype" in said:
        said["dtype"] = DTYPES[said["dtype"]]
    return Lora(**said)


def _one(name: str, setting: Setting, chosen: argparse.Namespace, progress: Progress) -> MemoryReport:
    def tell(what: str, done: float = 0.0) -> None:
        progress(f"{name}: {what}", done)

    with _no_chatter():
        with without_collection():  # what is imported and built stays until the end
            tell("building it on fake tensors")
            with FakeMode():
                built = build(name, setting)
            made = make_report(
                built.model,
                *built.args,
                optimizer=chosen.optimizer,
                gpu_memory=chosen.gpu_memory,
                like_cuda=True,
                autocast=torch.bfloat16 if setting.autocast else None,
                name=name,
                setting=built.setting | ({"one of the ranks": str(chosen.shard)} if chosen.shard else {}),
                choices=False if chosen.shard else None if chosen.choices or not chosen.gpu_memory else ("OptiActs",),
                shard=chosen.shard,
                checkpoint=chosen.checkpoint,
                lora=setting.lora,
                progress=tell,
                **built.kwargs,
            )
        if chosen.measure:
            tell("measuring on the GPU", 1.0)
            made = dataclasses.replace(made, measured=_measured(name, setting, made, chosen.optimizer))
    return made


def _measured(name: str, setting: Setting, made: MemoryReport, optimizer: str) -> tuple[Measured, ...]:
    with torch.device("cuda"):
        built = build(name, setting)
        training = OPTIMIZERS[optimizer]([p for p in built.model.parameters() if p.requires_grad], None)

        def forward(*args: Any, **kwargs: Any) -> Any:
            with autocasting(built.model, (), torch.bfloat16 if setting.autocast else None):
                return built.model(*args, **kwargs)

        results = []
        for stage in made.stages:
            if stage.name in conversion.CONVERSIONS:
                conversion.convert_stage(built.model, stage.name, made.sites)
            results.append(measure_step(stage.name, forward, built.args, built.kwargs, training))
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
    """Tables in the terminal with rich, Markdown without."""
    try:
        from rich.console import Console
    except ImportError:
        print("\n".join(markdown(made) for made in reports))
        return
    console = Console(soft_wrap=False)
    for made in reports:
        for part in rich_tables(made):
            console.print(part)
            console.print()
