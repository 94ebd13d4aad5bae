"""docs/followers.md and docs/offloading.md say what their commands find."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import followers, offloading

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["Linear", "LoRA, fp32, `lora_dropout=0.05`"])
def test_a_row_of_the_followers(name: str) -> None:
    follower = next(one for one in followers.FOLLOWERS if one.name == name)
    row = f"| {name} | {' | '.join(followers.cells(follower))} | {follower.advice} |"
    assert row in (DOCS / "followers.md").read_text(encoding="utf-8").splitlines()


def test_what_offloading_moves(capsys: pytest.CaptureFixture[str]) -> None:
    offloading.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    page = (DOCS / "offloading.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and set(rows) <= set(page)
