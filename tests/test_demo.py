"""The demo runs, measures, and its comparison can fail."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import optiacts
from optiacts.demo import full_size
from optiacts.demo.text import batches, corpus
from optiacts.demo.training import BATCH, CONTEXT, compare
from tests.commands import optiacts as run

TOKENS, WIDTH = BATCH * CONTEXT, 128
PLAIN, INNER = 4 * WIDTH, 3 * WIDTH  # two blocks of each kind


def unchanged(model: torch.nn.Module) -> None:
    pass


def test_the_command_prints_both_tables_and_writes_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The known models have two layers here; tests/test_report.py has the figures of the whole ones."""
    for name, setting in list(full_size.MODELS.items()):
        monkeypatch.setitem(full_size.MODELS, name, replace(setting, overrides={"num_hidden_layers": 2}))
    picture = tmp_path / "pictures" / "demo.png"
    result = run("demo", "--steps", "2", "--picture", str(picture))
    assert result.exit_code == 0, result.output
    assert "held for backward" in result.output and "bert-base" in result.output and "mistral-7b" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_saved_bytes_differ_by_what_the_mlps_hold() -> None:
    """In float32: GELU's input and the dropout's noise, less a bit; of the gated product's four tensors and the noise
    three, less two bits and two edges.
    """
    changes = {"a": unchanged, "b": partial(optiacts.convert, norms=False)}
    theirs, ours = compare(changes, 1, 0, lambda runs: None)
    plain, gated = TOKENS * PLAIN * (2 * 4 - 1 / 8), TOKENS * INNER * (3 * 4 - 2 / 8) - 2 * 4
    assert theirs.saved_bytes - ours.saved_bytes == 2 * (plain + gated)
    assert theirs.losses[0] == ours.losses[0]  # the forward is the same to the bit


def test_a_wrong_gradient_shows() -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(x.detach())

    def spoil(model: torch.nn.Module) -> None:
        model.get_submodule("blocks.0.mlp").register_module("1", Wrong())

    theirs, wrong = compare({"a": unchanged, "b": spoil}, 3, 0, lambda runs: None)
    assert wrong.apart(theirs)[0] == 0 and abs(wrong.apart(theirs)[-1]) > 1e-4


def test_batches_are_real_text_and_repeatable() -> None:
    text = corpus()
    assert len(text) > 400_000 and b"Python" in bytes(text.tolist())
    first, again = next(batches(text, 4, 16, 1)), next(batches(text, 4, 16, 1))
    assert first.shape == (4, 17) and torch.equal(first, again)
    assert not torch.equal(first, next(batches(text, 4, 16, 2)))
