"""``optiacts report``: the report on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts.held.fake import autocasting
from optiacts.reporting import conversion
from optiacts.reporting.analysis import report as make_report
from optiacts.reporting.build import ATTENTIONS, DTYPES, Setting, build
from optiacts.reporting.data import Measured, MemoryReport
from optiacts.reporting.lora import TRAIN_MODES
from optiacts.reporting.measure import measure as measure_step
from optiacts.reporting.measure import require_cuda
from optiacts.reporting.plot import plot as draw
from optiacts.reporting.presets import PRESETS
from optiacts.reporting.states import OPTIMIZERS
from optiacts.reporting.table import markdown, rich_tables

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``optiacts report``."""
    parser.description = (
        "How much memory will I save, before I rent the GPU. Everything runs on fake tensors: no weights, no GPU, no "
        "network."
    )
    parser.epilog = "Presets: " + ", ".join(PRESETS)
    usual = Setting()
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a preset, the path of a Hugging Face config.json, or module:function, where the function returns "
        "(model, inputs)",
    )
    parser.add_argument("--batch", type=int, default=usual.batch, help="samples in a step (%(default)s)")
    parser.add_argument("--seq", type=int, help="tokens in a sample (as many as the model allows, at most 4096)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help=f"of weights and activations ({usual.dtype}; with --autocast float32)",
    )
    parser.add_argument(
        "--autocast",
        action="store_true",
        help="train under autocast in bfloat16, as the Hugging Face Trainer's bf16=True does",
    )
    parser.add_argument("--attention", choices=ATTENTIONS, default=usual.attention, help="(%(default)s)")
    parser.add_argument("--train-mode", choices=TRAIN_MODES, default=usual.train_mode, help="(%(default)s)")
    parser.add_argument(
        "--loss", action=argparse.BooleanOptionalAction, default=usual.loss, help="with head and loss (%(default)s)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        type=_override,
        help="change an entry of the config",
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="(%(default)s)")
    parser.add_argument(
        "--gpu-memory", metavar="SIZE", type=_memory, help="tell the largest batch that fits, e.g. 24GiB"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: one object for one model, else a list")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture (.png, .svg, .pdf); needs matplotlib")
    parser.add_argument("--measure", action="store_true", help="run a real step on a CUDA GPU beside the prediction")


def run(chosen: argparse.Namespace) -> int:
    """Makes the reports that were asked for and prints them; ``ReportError`` for what cannot be done."""
    if chosen.measure:
        require_cuda()
    setting = Setting(
        chosen.batch,
        chosen.seq,
        chosen.dtype or ("float32" if chosen.autocast else Setting.dtype),
        chosen.attention,
        chosen.train_mode,
        chosen.loss,
        chosen.autocast,
        dict(chosen.overrides),
    )
    reports = [
        _one(name, setting, chosen.optimizer, chosen.gpu_memory, chosen.measure, quiet=chosen.json)
        for name in chosen.models
    ]
    if chosen.plot is not None:
        draw(reports, chosen.plot)
    if chosen.json:
        data = [made.to_dict() for made in reports]
        print(json.dumps(data[0] if len(data) == 1 else data, indent=2))
    else:
        _show(reports)
    return 0


def _memory(text: str) -> int:
    """A size such as 24GiB, in bytes."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give one such as 24GiB or 80GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _override(text: str) -> tuple[str, Any]:
    """KEY=VALUE in two, the value read as JSON, or as text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE; give one such as num_hidden_layers=2")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _one(
    name: str, setting: Setting, optimizer: str, gpu_memory: int | None, measure: bool, quiet: bool
) -> MemoryReport:
    with _status(quiet) as tell, _no_chatter():
        tell(f"{name}: building it on fake tensors")
        with FakeTensorMode(allow_non_fake_inputs=True):
            built = build(name, setting)
        made = make_report(
            built.model,
            *built.args,
            optimizer=optimizer,
            gpu_memory=gpu_memory,
            like_cuda=True,
            autocast=torch.bfloat16 if setting.autocast else None,
            name=name,
            setting=built.setting,
            progress=lambda what: tell(f"{name}: {what}"),
            **built.kwargs,
        )
        if measure:
            tell(f"{name}: measuring on the GPU")
            made = dataclasses.replace(made, measured=_measured(name, setting, made))
    return made


def _measured(name: str, setting: Setting, made: MemoryReport) -> tuple[Measured, ...]:
    with torch.device("cuda"):
        built = build(name, setting)

        def forward(*args: Any, **kwargs: Any) -> Any:
            with autocasting(built.model, (), torch.bfloat16 if setting.autocast else None):
                return built.model(*args, **kwargs)

        results = []
        for stage in made.stages:
            if stage.name in conversion.CONVERSIONS:
                conversion.convert_stage(built.model, stage.name, made.sites)
            results.append(measure_step(stage.name, forward, built.args, built.kwargs))
    return tuple(results)


@contextmanager
def _status(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows what is being done, while it is done; nothing without rich."""
    try:
        from rich.console import Console
    except ImportError:
        yield lambda words: None
        return
    with Console(stderr=True, quiet=quiet).status("") as status:
        yield status.update


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
