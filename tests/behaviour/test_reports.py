"""What the report says, and what is said of inputs that do not fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import BertConfig, BertModel

import optiacts
from tests.behaviour.case import sample
from tests.behaviour.cases_gated import Direct
from tests.behaviour.cases_inplace import PlusEquals
from tests.behaviour.cases_stock import Tokens
from tests.behaviour.parts import Called
from tests.behaviour.sameness import described, random_state

BERT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 50}


def _bert(layers: int = 12) -> nn.Module:
    return BertModel(BertConfig(num_hidden_layers=layers, **BERT))


def test_a_frozen_bert_is_a_handful_of_rows() -> None:
    model = _bert().requires_grad_(False)
    ids = torch.ones(1, 4, dtype=torch.long)
    for text in (
        str(optiacts.convert(_bert().requires_grad_(False))),
        str(optiacts.convert(model, example_inputs=ids)),
    ):
        assert len(text.splitlines()) <= 14, text


def test_reasons_that_differ_in_a_number_fold_too() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PlusEquals()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    text = str(optiacts.convert(nn.ModuleList([Layer() for _ in range(12)])))
    assert not any(f".{n}." in text or f" {n}." in text for n in range(2, 12)), text
    assert len(text.splitlines()) <= 8, text


def test_it_says_what_was_converted_left_and_why() -> None:
    model = nn.ModuleDict(
        {"a": Direct(nn.SiLU()), "b": PlusEquals(), "c": Called(nn.GELU()), "d": Called(nn.PReLU())}
    )
    report = optiacts.convert(model)
    text = str(report)
    assert {"silu gate", "gelu"} <= {entry.what for entry in report.converted}
    assert all(entry.reason for entry in report.left) and all(not entry.reason for entry in report.converted)
    assert any("in place" in entry.reason for entry in report.left)
    for word in ("silu gate", "gelu", "in place", "prelu", "PReLU"):
        assert word in text, text


def test_it_says_how_many_bytes_are_saved() -> None:
    model, x = nn.Sequential(Direct(nn.SiLU()), Called(nn.GELU())), sample(256, 16)
    before = optiacts.saved_memory(model, x).bytes
    text = str(optiacts.convert(model, example_inputs=x))
    saved = before - optiacts.saved_memory(model, x).bytes
    assert saved > 0
    shown = [f"{saved / unit:.{digits}f}" for unit in (1, 1e3, 1024, 1e6, 2**20) for digits in (0, 1, 2, 3)]
    assert any(number in text.replace(",", "") for number in shown), (saved, text)


def test_what_nobody_calls_is_said() -> None:
    class Unused(Called):
        def __init__(self) -> None:
            super().__init__()
            self.never = nn.GELU()

    report = optiacts.convert(Unused())
    (entry,) = [entry for entry in report.entries if entry.path == "never"]
    assert entry.reason and not entry.what, report


# --- inputs that do not fit ---


class Raises(Called):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        raise RuntimeError("the user's own error")
        return y


class Stateful(Called):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.register_buffer("seen", torch.zeros(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        random.random(), numpy.random.rand()
        return super().forward(self.drop(self.norm(x)))


def _state(model: nn.Module) -> Any:
    tensors = [(id(p), p._version, p.grad) for p in [*model.parameters(), *model.buffers()]]
    return [type(m) for m in model.modules()], dict(described(model)), tensors, random_state()


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Called, sample(4, 7)),
        (Called, (sample(), sample())),
        (Called, {"y": sample()}),
        (Called, ()),
        (Called, "x"),
        (Called, torch.ones(4, 16, dtype=torch.long)),
        (Stateful, sample(4, 7)),
        (Raises, sample()),
        (lambda: Tokens(_bert(2)), sample(4, 7)),
    ],
)
def test_inputs_that_do_not_fit(make: Callable[[], nn.Module], inputs: Any) -> None:
    model = make()
    before = _state(model)
    with pytest.raises((ValueError, TypeError, RuntimeError), match="example_inputs") as caught:
        optiacts.convert(model, example_inputs=inputs)
    assert len(str(caught.value).strip().splitlines()) == 1, caught.value
    assert _state(model) == before


def test_a_dry_run_leaves_no_trace() -> None:
    model = Stateful()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    classes, *before = _state(model)
    x = sample()
    optiacts.convert(model, example_inputs=x)
    optiacts.revert(model)
    assert _state(model) == (classes, *before)
    assert torch.equal(x, sample()) and x.grad is None


def test_on_fake_tensors() -> None:
    real, x = Direct(nn.SiLU()), sample()
    before = optiacts.saved_memory(real, x).bytes
    optiacts.convert(real)
    after = optiacts.saved_memory(real, x).bytes
    with FakeTensorMode():
        model, x = Direct(nn.SiLU()), torch.randn(4, 16)
        assert optiacts.saved_memory(model, x).bytes == before
        optiacts.convert(model)
        assert optiacts.saved_memory(model, x).bytes == after < before
