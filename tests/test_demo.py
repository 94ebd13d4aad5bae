"""The demo runs, measures, and its comparison can fail."""

from pathlib import Path

import torch

import optiacts
from optiacts.demo.text import batches, corpus
from optiacts.demo.training import BATCH, CONTEXT, compare
from tests.commands import optiacts as run

HIDDEN = BATCH * CONTEXT * 4 * 128  # elements of one GELU input of the demo's GPT


def test_the_command_prints_both_tables_and_writes_the_picture(tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "demo.png"
    result = run("demo", "--steps", "2", "--picture", str(picture))
    assert result.exit_code == 0, result.output
    assert "held for backward" in result.output and "BERT-base" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_saved_bytes_differ_by_the_four_inputs_less_their_bits() -> None:
    theirs, ours = compare({"a": torch.nn.GELU, "b": optiacts.GELU}, 1, 0, lambda runs: None)
    assert theirs.saved_bytes - ours.saved_bytes == 4 * (HIDDEN * 4 - HIDDEN // 8)
    assert theirs.losses[0] == ours.losses[0]  # the forward is the same to the bit


def test_a_wrong_gradient_shows() -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(x.detach())

    theirs, wrong = compare({"a": torch.nn.GELU, "b": Wrong}, 3, 0, lambda runs: None)
    assert theirs.losses[0] == wrong.losses[0] and abs(theirs.losses[-1] - wrong.losses[-1]) > 1e-4


def test_batches_are_real_text_and_repeatable() -> None:
    text = corpus()
    assert len(text) > 400_000 and b"Python" in bytes(text.tolist())
    first, again = next(batches(text, 4, 16, 1)), next(batches(text, 4, 16, 1))
    assert first.shape == (4, 17) and torch.equal(first, again)
    assert not torch.equal(first, next(batches(text, 4, 16, 2)))
