"""docs/tour.md says what examples/tour.py finds, and its pictures can be drawn."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tour(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("tour")


def test_the_numbers_of_the_page(tour: Any) -> None:
    page = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    x_min, y_min = tour.minimum()
    assert abs(float(tour.slope(tour.value(x_min)))) < 1e-7 and y_min < -0.16
    level = float(torch.nn.functional.gelu(tour.value(tour.LEFT)))
    right = tour.other_input(level, x_min)
    assert float(torch.nn.functional.gelu(tour.value(right))) == pytest.approx(level, abs=1e-12)
    slopes = [float(tour.slope(tour.value(x))) for x in (tour.LEFT, right)]
    assert f"minimum at x = {x_min:.4f}" in page and f"{right:.3f} both give y = {level:.4f}" in page
    assert f"{slopes[0]:+.3f} and {slopes[1]:+.3f}" in page and slopes[0] < 0 < slopes[1]
    for size in (*tour.gelu_and_linear().values(), *tour.stages().values()):
        assert f"{size:,}" in page


def test_the_pictures_can_be_drawn(tour: Any, tmp_path: Path) -> None:
    at = tour.minimum()
    draw = [
        lambda axes: tour.draw_curve(axes, tour.LEFT, -0.21, at),
        lambda axes: tour.draw_slope(axes, tour.LEFT, -0.21, at),
        lambda axes: tour.draw_bytes(axes, {"PyTorch": 2**21, "OptiActs": 2**20}),
        lambda axes: tour.draw_losses(axes, {"PyTorch": [1.0, 0.5], "OptiActs": [1.0, 0.5]}),
    ]
    tour.figure(tmp_path / "all.png", *draw)
    assert (tmp_path / "all.png").stat().st_size > 20_000
    for name in ("curve", "error", "model"):
        assert (ROOT / "docs" / "figures" / f"tour_{name}.png").exists()
