"""``--measure`` without a GPU: the arithmetic on an allocator that is made up, and what is differentiated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import gpu_peaks
from optiacts.reporting import ReportError
from optiacts.reporting.loss import scalar
from optiacts.reporting.measure import measure, require_cuda


def test_what_a_forward_leaves_is_the_growth_since_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([700, 1000, 1250])  # after the first forward; before the second; after it
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(readings))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1900)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    model = nn.Linear(3, 4)
    steps: list[int] = []

    class Optimizer(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            steps.append(1)
            assert torch.equal(model.bias.grad, torch.full((4,), 0.25))  # of one step: they are dropped between

    measured = measure("now", model, (torch.ones(2, 3),), {}, Optimizer(model.parameters()))
    assert (measured.stage, measured.after_forward, measured.peak) == ("now", 250, 1900)
    assert len(steps) == 2 and model.bias.grad is None


def test_without_cuda_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ReportError, match="needs a CUDA GPU; there is none here"):
        require_cuda()


def test_the_loss_or_the_mean_of_the_output() -> None:
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    assert scalar((x * 2,)).item() == 4
    with pytest.raises(ReportError, match="nothing to differentiate"):
        scalar(torch.ones(2))


@pytest.mark.filterwarnings("ignore")
def test_gpu_check_sets_the_peaks_beside_real_ones() -> None:
    """Its dry run, against the allocator of the CPU; convolutions take more there than is known."""
    rows = gpu_peaks.peaks(torch.device("cpu"), dry=True)
    assert len({row["model"] for row in rows}) == len({case.make for case in gpu_peaks.CASES}) == 3
    assert {row["stage"] for row in rows} > {"now", "activations converted", "norms converted"}
    for row in rows:
        if "convolutions" not in row["model"]:
            assert row["error"] == pytest.approx(0, abs=0.02), row
