"""Which modules are meant, what is rewritten, what is left alone, and how it is told."""

import copy
import math

import pytest
import torch
from torch import nn

import optiacts
from tests import fresh
from tests.convertible import (
    ByFunction,
    ByHelper,
    Chunked,
    Gated,
    InPlaceProduct,
    Plain,
    WrittenOut,
    agrees,
    sample,
)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Gated, "silu gate"),
        (Chunked, "silu gate"),
        (InPlaceProduct, "silu gate"),
        (ByFunction, "gelu_tanh gate"),
        (ByHelper, "relu gate in _product()"),
        (Plain, "gelu"),
        (WrittenOut, "quick_gelu"),
    ],
)
def test_rewritten_forwards(kind: type[Gated], what: str) -> None:
    torch.manual_seed(0)
    original = kind()
    model = copy.deepcopy(original)
    report = optiacts.convert(model)
    assert [(entry.path, entry.what) for entry in report.converted][:1] == [("", what)]
    agrees(model, original, sample())
    tensors = 4 * 16 * 4  # one hidden tensor
    before = optiacts.saved_memory(original, sample()).bytes
    after = optiacts.saved_memory(model, sample()).bytes
    # PyTorch holds gate, act(gate), up and h, or x, sigmoid and h, or x and h; of a ReLU gate act(gate), up and h
    gained = {Plain: 1, ByHelper: 1}.get(kind, 2)
    assert before - after == gained * tensors - _side_bytes(what), (before, after)


def _side_bytes(what: str) -> int:
    """Planes of bits, and for gates the two numbers through which second derivatives find their way."""
    planes = 1 if "relu" in what or "gate" not in what else 2
    return planes * 4 * 2 + (8 if "gate" in what else 0)


def test_nothing_is_changed_that_is_changed_in_place_afterwards() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5, inplace=True), nn.Linear(8, 8))
    original = copy.deepcopy(model)
    report = optiacts.convert(model, dropout=False)
    assert "in place" in report.left[0].reason and not report.converted
    agrees(model, original, sample())


def test_activations_whose_output_is_not_kept_are_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.0))
    report = optiacts.convert(model, dropout=False)
    assert [entry.path for entry in report.converted] == ["4"]
    assert "does not keep" in report.left[0].reason


def test_shared_activation() -> None:
    act = nn.SiLU()
    original = nn.Sequential(Gated(act), Gated(act), nn.Linear(8, 8), act)
    model = copy.deepcopy(original)
    report = optiacts.convert(model)
    assert [entry.path for entry in report.converted] == ["0", "0.act", "1"]
    assert model[0].act is model[1].act is model[3]
    agrees(model, original, sample())


def test_include_and_exclude() -> None:
    def converted(**selection: object) -> list[str]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"a": Gated(), "b": nn.Sequential(nn.Linear(8, 8), nn.GELU()), "c": Plain(nn.Mish())})
        return [entry.path for entry in optiacts.convert(model, **selection).converted]  # type: ignore[arg-type]

    assert converted() == ["a", "a.act", "b.1", "c", "c.act"]
    assert converted(include="a") == ["a", "a.act"]
    assert converted(include=["b*", Plain]) == ["b.1", "c", "c.act"]
    assert converted(include=nn.SiLU) == ["a", "a.act"]  # the activation, its product included
    assert converted(exclude="a.act") == ["b.1", "c", "c.act"]
    assert converted(exclude=(nn.GELU, "c")) == ["a", "a.act"]
    assert converted(include=lambda path, module: path.startswith("c")) == ["c", "c.act"]
    assert converted(include="a", exclude="a") == []
    with pytest.raises(ValueError, match="'nowhere'"):
        converted(include=["a", "nowhere"])
    for wrong in (3, [nn.SiLU()], int, ["a", None]):
        with pytest.raises(TypeError, match="exclude must be"):
            converted(exclude=wrong)
    with pytest.raises(TypeError, match="model must be"):
        optiacts.convert("model")  # type: ignore[arg-type]


def test_transformer_encoder_layer() -> None:
    """PyTorch's own layer calls the function it holds, in a helper method."""
    torch.manual_seed(0)
    original = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    model = copy.deepcopy(original)
    report = optiacts.convert(model)
    found = ["gelu + dropout in _ff_block()", *3 * ["dropout"], *2 * ["LayerNorm"]]
    assert sorted(entry.what for entry in report.converted) == sorted(found)
    for mode in (True, False):
        agrees(model.train(mode), original.train(mode), sample(2, 3, 8))
    with torch.no_grad():  # its fast path
        assert torch.equal(model(sample(2, 3, 8)), original(sample(2, 3, 8)))


def test_report_prints_as_a_table() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([Gated(), Gated()]), "head": nn.Tanh()})
    text = str(optiacts.convert(model))
    assert "layers.* (2)      Gated  silu gate" in text
    assert "head              Tanh   left: PyTorch keeps its result already" in text
    assert text.endswith("4 converted, 1 left alone")
    assert str(optiacts.convert(nn.Linear(2, 2))) == "nothing to convert"


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, torch, optiacts; optiacts.convert(torch.nn.Sequential(torch.nn.GELU()));"
        "print([m for m in ('transformers', 'diffusers', 'timm', 'peft', 'triton') if m in sys.modules])"
    )
    assert fresh.run(program, check=True).stdout.strip() == "[]", math.nan
