"""The arguments of ``optiacts report``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from optiacts.reporting.errors import ReportError
from optiacts.reporting.names import ATTENTIONS, DTYPES, OPTIMIZERS, TRAIN_MODES
from optiacts.reporting.presets import PRESETS
from optiacts.reporting.ranks import Ranks, ranks_of
from optiacts.reporting.sizes import memory_of

_MOST = 2**31 - 1  # samples, tokens, pixels: no size overflows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds them to ``parser``."""
    parser.description = (
        "How much memory will I save, before I rent the GPU. Everything runs on fake tensors: no weights, no GPU, no "
        "network."
    )
    parser.epilog = "Presets: " + ", ".join(PRESETS)
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a preset, a Hugging Face config.json or the directory that it is in, a Hub id that is in the local "
        "cache, or module:function, where the function returns (model, inputs)",
    )
    _training(parser)
    _output(parser)


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=_whole, help="samples in a step (1)")
    parser.add_argument("--seq", type=_whole, help="tokens in a sample (as many as the model allows, at most 4096)")
    parser.add_argument("--image-size", type=_whole, help="pixels each way (as in the model's config)")
    parser.add_argument(
        "--tokens", type=_whole, help="in one row, of sequences of --seq tokens side by side: packed, without padding"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of weights and activations (bfloat16; with --autocast float32)"
    )
    parser.add_argument(
        "--autocast",
        action="store_true",
        help="train under autocast in bfloat16, as the Hugging Face Trainer's bf16=True does",
    )
    parser.add_argument("--attention", choices=ATTENTIONS, help="(sdpa, where the model has it, else eager)")
    parser.add_argument("--train-mode", choices=TRAIN_MODES, default="full", help="(%(default)s)")
    parser.add_argument("--lora-rank", type=_whole, help="of the adapters of lora and qlora (16)")
    parser.add_argument(
        "--lora-targets",
        metavar="NAMES",
        type=_names,
        help="names of Linears, e.g. q_proj,v_proj (all in the repeated layers)",
    )
    parser.add_argument("--lora-dropout", type=_share, help="before each adapter (0)")
    parser.add_argument("--lora-dtype", choices=DTYPES, help="of the adapters (float32, as PEFT has them)")
    parser.add_argument(
        "--checkpoint",
        metavar="every=N",
        type=_every,
        default=0,
        help="checkpoint every N-th of the repeated layers: its inner tensors are computed again in backward",
    )
    parser.add_argument(
        "--shard",
        metavar="fsdp=N,tp=M",
        type=_ranks,
        help="one of so many ranks, with a batch of its own: FSDP2 on each layer, and tensor parallelism by "
        "transformers' plan; without the table of choices",
    )
    parser.add_argument(
        "--loss", action=argparse.BooleanOptionalAction, default=True, help="with head and loss (%(default)s)"
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


def _output(parser: argparse.ArgumentParser) -> None:
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--gpu", dest="gpu_memory", metavar="CARD", type=_memory, help="what fits a card, e.g. rtx-4090, a100-80gb"
    )
    memory.add_argument(
        "--gpu-memory", metavar="SIZE", type=_memory, help="what fits so much memory, e.g. 24GB; a number is GiB"
    )
    parser.add_argument(
        "--choices",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --gpu or --gpu-memory: run what there is to choose from; without, OptiActs alone (%(default)s)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: one object for one model, else a list")
    form.add_argument("--csv", action="store_true", help="print CSV: a line for each stage, sizes in bytes")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture (.png, .svg, .pdf); needs matplotlib")
    parser.add_argument("--measure", action="store_true", help="run a real step on a CUDA GPU beside the prediction")


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}") from error
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    if number > _MOST:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST}; got {text}")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to less than 1; got {text!r}")
    return share


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names such as q_proj,v_proj; got {text!r}")
    return names


def _every(text: str) -> int:
    number = text.removeprefix("every=")
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"must be every=N with N from 1 on; got {text!r}")
    return int(number)


def _memory(text: str) -> int:
    try:
        return memory_of(text)
    except ReportError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _ranks(text: str) -> Ranks:
    try:
        return ranks_of(text)
    except ReportError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _override(text: str) -> tuple[str, Any]:
    """KEY=VALUE in two, the value read as JSON, or as text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE; give one such as num_hidden_layers=2")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
