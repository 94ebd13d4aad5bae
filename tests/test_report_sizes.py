"""Amounts of memory as people say them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optiacts
from optiacts.reporting import ReportError
from optiacts.reporting.cards import CARDS
from optiacts.reporting.sizes import GIB, MIB, in_words, memory_of

G = 2**30


@pytest.mark.parametrize(
    ("said", "nbytes"),
    [
        ("24GB", 24 * G),
        ("24 gb", 24 * G),
        ("24GiB", 24 * G),
        ("24", 24 * G),
        (24, 24 * G),
        (1.5, 3 * G // 2),
        ("500MB", 500 * 2**20),
        ("1.5T", 3 * 2**39),
        (24 * G, 24 * G),
        (str(24 * G), 24 * G),
        ("rtx-4090", 24564 * 2**20),
        ("NVIDIA GeForce RTX 4090", 24564 * 2**20),
        ("A100 80GB", 81920 * 2**20),
        ("T4", 15360 * 2**20),
    ],
)
def test_sizes_mean_what_people_mean(said: object, nbytes: int) -> None:
    assert memory_of(said) == nbytes


@pytest.mark.parametrize(
    "said", ["lots", "", "0", 0, -3, "-24GB", "24 bananas", "24000", "1e400", True, None, [24], "a100", "nan", 2e20]
)
def test_nonsense_is_refused(said: object) -> None:
    with pytest.raises(ReportError, match=r"size|memory of a device"):
        memory_of(said)


def test_every_card_has_what_its_name_says() -> None:
    """A name that ends in a size has nearly that much: what the driver reports is at most 3 % less."""
    for name in CARDS:
        assert memory_of(name) == CARDS[name] * 2**20
        *_, size = name.split("-")
        if size.endswith("gb"):
            assert 0.97 * int(size[:-2]) * 1024 < CARDS[name] <= int(size[:-2]) * 1024, name


def test_small_amounts_name_their_own_unit() -> None:
    assert [GIB(n) for n in (0, 4, 4096, 3 * 2**20, 24 * G, -4096)] == [
        "0.00", "4 B", "4.00 KiB", "3.00 MiB", "24.00", "-4.00 KiB",
    ]  # fmt: skip
    assert [MIB(n) for n in (100, 2048, 6 * 2**10, 2**20)] == ["100 B", "2.00 KiB", "0.01", "1.00"]
    assert [in_words(n) for n in (5, 2**20, G)] == ["5 B", "1.00 MiB", "1.00 GiB"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory": "lots"}, "'lots' is not a size or a card"),
        ({"optimizer": "lion"}, r"optimizer must be one of adamw.*got 'lion'"),
        ({"optimizer": ["adamw"]}, r"optimizer must be one of adamw"),
        ({"autocast": "bfloat16"}, r"autocast must be torch.bfloat16.*got 'bfloat16'"),
        ({"fake": "no"}, "fake must be True or False; got 'no'"),
        ({"like_cuda": 1}, "like_cuda must be True or False; got 1"),
        ({"setting": "lora"}, "setting must be a dict of words; got 'lora'"),
        ({"progress": 3}, "progress must be called with words and a fraction; got 3"),
        ({"checkpoint": 1}, "checkpoint: every=1, but Linear has no repeated layers"),
        ({"shard": 8}, "a shard must be such as fsdp=8.*got 8"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        optiacts.report(nn.Linear(3, 4), torch.ones(2, 3), **options)


def test_a_name_is_no_model() -> None:
    with pytest.raises(ReportError, match=r"model must be a torch.nn.Module; got 'bert-base'"):
        optiacts.report("bert-base", torch.ones(2, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.LazyLinear(4), (2, 3), "model has a LazyLinear without sizes yet"),
        (nn.Linear(3, 4), (0, 3), r"inputs: the first has the shape \[0, 3\]; give at least one sample"),
        (nn.Linear(3, 4), (2, 5), r"Check that the inputs \(float32 \[2, 5\]\) fit the model"),
    ],
)
def test_models_and_inputs_without_sizes_are_refused(model: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        optiacts.report(model, torch.ones(shape))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused() -> None:
    """Its copies hide their gradients: they were counted as none."""
    with pytest.raises(ReportError, match="model is a TorchScript module"):
        optiacts.report(torch.jit.script(nn.Linear(3, 4)), torch.ones(2, 3))


@pytest.mark.parametrize("peak", [True, False])
def test_inputs_of_another_dtype_are_refused_as_a_real_step_refuses_them(peak: bool) -> None:
    for model, x in ((nn.Linear(3, 4).bfloat16(), torch.ones(2, 3)), (nn.Linear(3, 4), torch.ones(2, 3).long())):
        with pytest.raises(RuntimeError):
            model(x)
        with pytest.raises(ReportError, match=r"addmm of different dtypes: .*float.*Check that the inputs"):
            optiacts.report(model, x, peak=peak)
