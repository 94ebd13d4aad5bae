"""What people choose from: checkpointing, the chunked loss, adapters; and what the last line says of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from report_calibration import observed
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import optiacts
from optiacts.held.fake import fake_copy, mode_of
from optiacts.reporting import ReportError, report
from optiacts.reporting.analysis import peak_of
from optiacts.reporting.changes import checkpointed, layers_of
from optiacts.reporting.choices import Choice, Option
from optiacts.reporting.folding import stack_of, with_larger_batch
from optiacts.reporting.growth import Growth
from optiacts.reporting.lora import FourBitLinear, Lora, LoraLinear, set_train_mode
from optiacts.reporting.running import Runner
from optiacts.reporting.step import Step
from optiacts.reporting.verdict import verdict, verdict_alone

GIB = 2**30


class Block(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(wide, 4 * wide), nn.GELU(), nn.Linear(4 * wide, wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(x)))


class Stacked(nn.Module):
    def __init__(self, depth: int, wide: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(wide) for _ in range(depth))
        self.head = nn.Linear(wide, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def made(depth: int = 6, rows: int = 256, **options: Any) -> Any:
    return report(Stacked(depth), x=torch.zeros(rows, 32), **options)


def test_folded_and_whole_runs_agree_to_the_byte() -> None:
    """Six layers told from two and three, and their checkpointing, against all six run."""
    folded = made(choices=("OptiActs", "checkpointing"))
    by_words = {option.choice.words: option for option in folded.options}
    assert folded.now.peak.growth is not None and folded.stages[-1].peak.growth is not None
    assert by_words["now"].peak == folded.now.peak.bytes
    assert by_words["OptiActs"].peak == folded.stages[-1].peak.bytes
    every = made(checkpoint=1).now.peak
    assert by_words["checkpointing"].peak == every.bytes
    larger = made(rows=1024, checkpoint=1).now.peak
    assert by_words["checkpointing"].growth.of(1024) == larger.bytes
    assert by_words["checkpointing"].largest_batch(larger.bytes) == 1024
    assert by_words["checkpointing"].largest_batch(larger.bytes - 1) == 1023
    # computed again is the first Linear of each block, one of six products; backward needs no output of the second
    assert by_words["checkpointing"].more_work == pytest.approx(1 / 6, abs=0.02)
    assert by_words["OptiActs"].more_work is None


def stepped(model: nn.Module, rows: int, **options: Any) -> Step:
    fake, x = fake_copy(model, torch.zeros(rows, 32, requires_grad=True))  # as after an embedding
    return Runner(fake, (), {"x": x}, True, None, **options).step()


def test_a_larger_batch_is_told_to_the_byte() -> None:
    """What three layers do with four times the rows, from what two do, and from three with fewer rows."""
    few, more = Stacked(2), Stacked(3)
    told = with_larger_batch(stepped(more, 256), stepped(few, 256), stepped(few, 1024))
    assert told is not None
    run = stepped(more, 1024)
    assert told.timeline.levels() == run.timeline.levels() and told.gradients == run.gradients


def test_a_larger_batch_of_other_layers_is_not_told() -> None:
    more = Stacked(3)
    more.layers[1].up, more.layers[1].down = nn.Linear(32, 96), nn.Linear(96, 32)
    assert with_larger_batch(stepped(more, 256), stepped(Stacked(2), 256), stepped(Stacked(2), 1024)) is None


@pytest.mark.parametrize("mode", ["", "lora", "qlora"])
def test_what_checkpoints_compute_again_is_counted(mode: str) -> None:
    model, x = fake_copy(Stacked(2), torch.zeros(256, 32))
    if mode:
        with mode_of(model, x):
            set_train_mode(model, mode, Lora())
    optiacts.convert(model)
    plain, again = (Runner(model, (), {"x": x}, True, None, checkpoint=n).step().timeline for n in (0, 1))
    assert plain.again == 0 < again.again
    assert again.work - again.again == plain.work


def test_unequal_layers_are_not_folded() -> None:
    model = Stacked(6)
    assert stack_of(model) is not None
    model.layers[3].act = nn.ReLU()
    assert stack_of(model) is None
    alternating = Stacked(12)
    for layer in alternating.layers[::2]:
        layer.act = nn.ReLU()
    stack = stack_of(alternating)
    assert stack is not None and (stack.period, stack.units) == (2, 6)


def test_layers_that_only_look_equal_are_found_out() -> None:
    class Sly(Stacked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for number, layer in enumerate(self.layers):
                x = layer(x) if number < 4 else layer(layer(x))
            return self.head(x)

    found = report(Sly(6), x=torch.zeros(256, 32), choices=("checkpointing",))
    whole = {option.choice.words: option.peak for option in found.options}
    assert whole["now"] == found.now.peak.bytes
    assert whole["checkpointing"] == report(Sly(6), x=torch.zeros(256, 32), checkpoint=1).now.peak.bytes


@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_holds_what_a_real_step_holds(every: int) -> None:
    torch.manual_seed(0)
    model, x = Stacked(4), torch.randn(512, 32)
    found = report(model, x=x, checkpoint=every, optimizer="sgd").now
    held, wide = 512 * 4, 32
    plain = 4 - len(range(0, 4, every))
    layer = held * (1 + 2 * 4) * wide  # its input, the GELU's input and output
    # each checkpointed layer keeps its input alone, and so does the head
    assert found.bytes == plain * layer + (4 - plain) * held * wide + held * wide
    assert sum(found.kinds.values()) == found.bytes
    with checkpointed(layers_of(model)[::every], _nothing):
        real = observed(model, {"x": x}, None, "sgd")
    assert found.peak.bytes == pytest.approx(real, rel=0.02)
    assert "forward" not in vars(model.layers[0])


def test_layers_that_are_not_called_are_not_checkpointed() -> None:
    """The model takes from each what it needs: to checkpoint them changes nothing, and no figure says it does."""

    class Apart(Stacked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer.down(layer.act(layer.up(x)))
            return self.head(x)

    with pytest.raises(ReportError, match=r"the model calls none of the 2 layers to checkpoint \(Block\)"):
        report(Apart(4), x=torch.zeros(256, 32), checkpoint=2)
    found = report(Apart(4), x=torch.zeros(256, 32), choices=True)
    words = [option.choice.words for option in found.options]
    assert "OptiActs" in words and not any("checkpointing" in word for word in words)


class _nothing:  # noqa: N801
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def test_qlora_counts_four_bits() -> None:
    """Half a byte, a byte for 64 elements, and a float32 for 256 of those; the gradient flows through."""
    wide, rank = 32, 4
    with FakeTensorMode():
        model = Stacked(2, wide)
        set_train_mode(model, "qlora", Lora(rank=rank))
        layer = model.layers[0].up
        assert isinstance(layer, LoraLinear) and isinstance(layer.base, FourBitLinear)
        elements = 4 * wide * wide
        sizes = [p.nbytes for name, p in layer.base.named_parameters() if name != "bias"]
        assert sizes == [elements // 2, elements // 64, 4]
        model(torch.zeros(8, wide)).sum().backward()
        assert layer.lora_A["default"].weight.grad is not None and layer.base.weight.grad is None
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == 2 * 2 * rank * (wide + 4 * wide)


def test_adapters_hold_what_pefts_hold() -> None:
    """In float32 on a base in bfloat16, with dropout and without: the same bytes, and the same output."""
    peft = pytest.importorskip("peft")
    for dropout in (0.0, 0.1):
        torch.manual_seed(0)
        ours, theirs = Stacked(2).to(torch.bfloat16), Stacked(2).to(torch.bfloat16)
        set_train_mode(ours, "lora", Lora(rank=4, targets=("up",), dropout=dropout, dtype=torch.float32))
        config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["up"], lora_dropout=dropout)
        theirs = peft.get_peft_model(theirs, config)
        x = torch.randn(64, 32, dtype=torch.bfloat16)
        held = [optiacts.saved_memory(model.train(), x).bytes for model in (ours, theirs)]
        assert held[0] == held[1], dropout


def test_targets_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"no Linear is called 'q_proj'; there are down, up"):
        set_train_mode(Stacked(2), "lora", Lora(targets=("q_proj",)))
    with pytest.raises(ValueError, match=r"rank must be a whole number from 1 on; got 0"):
        Lora(rank=0)


def option(gib: float, **choice: Any) -> Option:
    more = choice.pop("more_work", None)
    slope = 2 * GIB
    growth = Growth(2, gib * GIB, ((gib * GIB - 2 * slope, slope),))
    return Option(Choice("adamw", **choice), growth, more, 32)


OPTIONS = (
    option(40),
    option(30, optiacts=True),
    option(20, checkpoints=32, more_work=0.33),
    option(15, optiacts=True, checkpoints=32, more_work=0.33),
    option(10, train_mode="qlora"),
)
TWELVE = option(29, checkpoints=12, more_work=0.15)


@pytest.mark.parametrize(
    ("memory", "fits", "words"),
    [
        (48, True, "fits 48.00 GiB with batch 6; with OptiActs batch 11."),
        (
            32,
            False,
            "With OptiActs it fits 32.00 GiB with batch 3; without OptiActs it needs checkpointing of the first 12 "
            "of 32 layers, about 15% more time.",
        ),
        (
            24,
            False,
            "As it is, it needs 40.00 GiB, 16.00 GiB more than 24.00 GiB. The smallest change here that makes it "
            "fit is checkpointing of every layer, about 33% more time: 20.00 GiB, batch 4.",
        ),
        (
            12.5,
            False,
            "As it is, it needs 40.00 GiB, 27.50 GiB more than 12.50 GiB. The smallest change here that makes it "
            "fit is QLoRA: 10.00 GiB, batch 3.",
        ),
        (
            8,
            False,
            "As it is, it needs 40.00 GiB, 32.00 GiB more than 8.00 GiB, and nothing here makes it fit: the least, "
            "QLoRA, needs 10.00 GiB.",
        ),
    ],
)
def test_the_last_line(memory: float, fits: bool, words: str) -> None:
    said = verdict(OPTIONS, int(memory * GIB), [TWELVE] if memory == 32 else [])
    assert (bool(said), str(said)) == (fits, words)


def test_too_little_is_left_is_said() -> None:
    assert "(tight: 0.50 GiB is left for what is not counted)" in str(verdict(OPTIONS, int(40.5 * GIB)))


def test_the_longest_sample_is_said() -> None:
    said = verdict(OPTIONS, 8 * GIB, longest=1024)
    assert "(the longest sample that fits has 1024 tokens)" in str(said)


def test_the_last_line_without_a_table_of_choices() -> None:
    needs = "does not fit 24.00 GiB: a step needs 30.00 GiB, 6.00 GiB more"
    for converted, words in (
        (None, f"{needs}."),
        (20, f"{needs}; with OptiActs it needs 20.00 GiB and fits."),
        (25, f"{needs}; with OptiActs 25.00 GiB, 1.00 GiB more."),
    ):
        said = verdict_alone(30 * GIB, None if converted is None else converted * GIB, 24 * GIB)
        assert not said and str(said) == words
    fits = verdict_alone(24 * GIB - 2**28, None, 24 * GIB)
    assert fits and str(fits) == (
        "fits 24.00 GiB: a step needs 23.75 GiB (tight: 0.25 GiB is left for what is not counted)."
    )


def test_fits_in_python() -> None:
    found = made(gpu_memory="64MB", choices=("OptiActs",))
    assert found.fits() and found.fits("24GB") and str(found.fits()).startswith("fits 64.00 MiB with batch ")
    assert found.to_dict()["verdict"] == str(found.fits())
    assert found.largest_batch(found.now) == found.options[0].largest_batch(2**26)
    alone = made().fits("24GB")
    assert alone and str(alone).startswith("fits 24.00 GiB: a step needs ")
    with pytest.raises(ReportError, match="the peak is not known"):
        made(peak=False).fits("24GB")
    with pytest.raises(ReportError, match="'lots' is not a size"):
        found.fits("lots")


def test_wrong_changes_are_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    for how, words in (
        ({"checkpoint": "two"}, "checkpoint must be a whole number from 0 on; got 'two'"),
        ({"checkpoint": -1}, "checkpoint must be a whole number from 0 on; got -1"),
        ({"choices": "LoRA"}, "choices must be True, False or names such as"),
        ({"choices": ("LoRa",)}, "choices: 'LoRa' is none here; there are now, OptiActs, checkpointing, "),
    ):
        with pytest.raises(ReportError, match=re.escape(words)):
            made(depth=2, rows=8, **how)
    with pytest.raises(ReportError, match="the forward failed: RuntimeError"):
        report(nn.Linear(3, 4), torch.zeros(2, 5))
    assert not caplog.records


def test_a_batch_that_does_not_fit_becomes_a_shorter_sample() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(10, 32), Stacked(5)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.body(self.embed(input_ids))

    model, ids = Model(), torch.zeros(1, 2**16, dtype=torch.long)
    found = report(model, input_ids=ids, gpu_memory="64MiB", optimizer="sgd", choices=())
    assert found.largest_batch(found.now) == 0 and found.longest is not None
    fits, more = (peak_of(model, {"input_ids": ids[:, :n]}, "sgd") for n in (found.longest, found.longest + 2**10))
    assert fits.bytes <= 2**26 < more.bytes
    assert f"the longest sample that fits has {found.longest} tokens" in str(found)


def test_adapters_of_the_choices_are_those_that_are_said() -> None:
    model, x = Stacked(4), torch.randn(2, 32)
    small, large = (
        report(model, x, choices=("LoRA", "LoRA with dropout 0.3 + OptiActs"), lora=Lora(rank, ("up",), 0.3))
        for rank in (1, 65)
    )
    for one, other in zip(small.options[1:], large.options[1:], strict=True):
        adapters = sum(64 * (m.in_features + m.out_features) for n, m in model.named_modules() if n.endswith("up"))
        assert other.peak - one.peak >= 4 * 4 * adapters  # weight, gradient and two moments
    assert len(small.options) == 3
    with pytest.raises(ReportError, match="no Linear is called 'q_proj'"):
        report(model, x, choices=True, lora=Lora(targets=("q_proj",)))


def test_without_linears_in_the_layers_there_are_no_adapters() -> None:
    """As in EfficientNet, whose one Linear is its head."""
    model = Stacked(2)
    model.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.GELU()) for _ in range(2))
    words = [one.choice.words for one in report(model, torch.randn(2, 32), choices=True).options]
    assert "checkpointing" in words and not [name for name in words if "LoRA" in name]
    with pytest.raises(ReportError, match="needs a model with Linear layers; it has none"):
        report(model, torch.randn(2, 32), choices=True, lora=Lora(rank=4))
