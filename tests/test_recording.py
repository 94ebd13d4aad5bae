"""What of a call is recorded, in which steps, and what no plan may rest on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import optiacts
from optiacts import host, recording, replay
from optiacts.backends import native_library

pytestmark = pytest.mark.skipif(host.lacking() is not None, reason=str(host.lacking()))

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Call = Callable[..., Any]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.clone(),
        lambda x: x.float(),
        lambda x: x.bfloat16(),
        lambda x: x.half(),
        lambda x: x.bool().double(),
        lambda x: x.to(torch.bfloat16).to(torch.float32),
        lambda x: x.to(torch.float64),
        lambda x: x.new_zeros(3, 5),
        lambda x: torch.zeros_like(x),
        lambda x: x.new_empty(x.shape).copy_(x),
        lambda x: torch.empty_like(x, memory_format=torch.preserve_format).copy_(x),
        lambda x: x.new_empty((3,), dtype=torch.int64).fill_(7),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_kernels_make_in_the_place_of_pytorch_is_the_same(make: Call, dtype: torch.dtype) -> None:
    replayed, before = replay.replayed(make), replay.count()
    for form in (lambda x: x, lambda x: x.t(), lambda x: x[:, ::2]):
        for _ in range(4):
            x = form((torch.randn(7, 13) * 10.0 ** torch.randint(-9, 9, (7, 13))).to(dtype))
            found, due = replayed(x), make(x)
            assert found.dtype is due.dtype and found.stride() == due.stride() and torch.equal(found, due)
            assert (found is x) == (due is x)
    assert replay.count() > before


def of_a_value(x: Tensor) -> Tensor:
    return x * 2 if x[0].item() > 0 else x * 3


def of_a_truth(x: Tensor) -> Tensor:
    return x * 2 if x[0] > 0 else x * 3


def of_a_length(x: Tensor) -> Tensor:
    return x * x.nonzero().shape[0]


def of_a_mask(x: Tensor) -> Tensor:
    return x * x[x > 0].numel()


def of_what_is_elsewhere(x: Tensor) -> Tensor:
    return x * ELSEWHERE["factor"]


def of_a_kernel_that_nobody_sees(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    ctypes.memmove(int(out.data_ptr()), int(x.data_ptr()), x.nbytes)
    return out


def of_a_kernel_called_past_the_recorder(x: Tensor) -> Tensor:
    kept, bits = x > 0, x.new_empty(1, dtype=torch.uint8)
    native_library.library().optiacts_pack_dropped(kept.data_ptr(), bits.data_ptr(), 1, 4, 1)
    return bits


def of_a_dict(x: Tensor) -> Any:
    return {"x": x * 2}


def with_a_change_in_place(x: Tensor) -> Tensor:
    return x.add_(1.0)


ELSEWHERE = {"factor": torch.ones(4)}


@pytest.mark.parametrize(
    "compute",
    [
        of_a_value,
        of_a_truth,
        of_a_length,
        of_a_mask,
        of_what_is_elsewhere,
        of_a_kernel_that_nobody_sees,
        of_a_kernel_called_past_the_recorder,
        of_a_dict,
        with_a_change_in_place,
    ],
    ids=lambda compute: compute.__name__,
)
def test_what_hangs_on_more_than_the_form_is_not_replayed(
    compute: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed, before = replay.replayed(compute), replay.count()
    samples = [torch.tensor([1.0, 2, 3, 4]), torch.tensor([-1.0, 2, 0, 4])] * 6
    for sample in samples:
        monkeypatch.setitem(ELSEWHERE, "factor", torch.randn(4))
        wanted = compute(sample.clone())
        found = replayed(sample.clone())
        for a, b in zip(
            *([each["x"]] if isinstance(each, dict) else [each] for each in (found, wanted)), strict=True
        ):
            assert torch.equal(a, b)
    assert replay.count() == before


def test_within_a_recording_nothing_is_replayed() -> None:
    """The recorder would not see it."""
    inner = replay.replayed(lambda x: x.mul(2.0))
    outer = replay.replayed(lambda x: inner(x).add(1.0))
    x = torch.randn(3)
    for _ in range(3):
        inner(x)
    for _ in range(4):
        x = torch.randn(3)
        assert torch.equal(outer(x), x * 2 + 1)


def test_views_that_kernels_alone_take_are_not_made() -> None:
    """Where a view starts is known; what starts elsewhere, is handed on or is a copy is made."""

    def bits_of(x: Tensor) -> Tensor:
        bits = x.new_empty(1, dtype=torch.uint8)
        native_library.run("pack_dropped", x.data_ptr(), bits.data_ptr(), 1, 8, 1)
        return bits

    def compute(x: Tensor) -> tuple[Tensor, ...]:
        whole, rows = x.flatten(), x.view(2, 8)
        return bits_of(whole), bits_of(rows), bits_of(rows[1]), bits_of(x.view(4, 4).t().contiguous()), rows

    plans = []
    plan = recording.Recorder.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.Recorder, "plan", lambda self, result: plans.append(plan(self, result)) or plans[-1])
        replayed = replay.replayed(compute)
        for _ in range(4):
            x = (torch.rand(2, 2, 4) < 0.5).to(torch.uint8)
            for found, due in zip(replayed(x), compute(x), strict=True):
                assert torch.equal(found, due) and found.shape == due.shape
    names = [getattr(step[0], "__name__", "") for step in plans[0].steps]
    assert names.count("flatten") == 0 and names.count("view") == 2 and "__getitem__" in names


def test_memory_that_only_a_view_shows_is_made_in_its_form() -> None:
    """What else somebody sees of it, by itself, by another view or by a function of PyTorch, is as it was."""

    def packed(x: Tensor) -> Tensor:
        bits = x.new_empty(4, dtype=torch.uint8)
        native_library.run("pack_dropped", x.data_ptr(), bits.data_ptr(), 4, 8, 1)
        return bits

    def compute(x: Tensor) -> tuple[Any, ...]:
        shown, both, twice, read, part = (packed(x) for _ in range(5))
        shared = twice.view(2, 2), twice.view(4, 1)
        return shown.view(2, 2), both, both.view(2, 2), shared, read.view(2, 2), read.add(1), part.view(2, 2).t()

    plans = []
    plan = recording.Recorder.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.Recorder, "plan", lambda self, result: plans.append(plan(self, result)) or plans[-1])
        replayed = replay.replayed(compute)
        before = replay.count()
        for _ in range(4):
            x = (torch.rand(4, 8) < 0.5).to(torch.uint8)
            found, due = replayed(x), compute(x)
            for one, other in zip((*found[:3], *found[3], *found[4:]), (*due[:3], *due[3], *due[4:]), strict=True):
                assert torch.equal(one, other) and one.stride() == other.stride()
            assert found[1].data_ptr() == found[2].data_ptr() and found[3][0].data_ptr() == found[3][1].data_ptr()
    assert replay.count() > before
    names = [getattr(step[0], "__name__", "") for step in plans[0].steps]
    assert names.count("view") == 5  # all but the first


def test_large_tensors_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_LARGEST", 8)
    compute, before = replay.replayed(lambda x: x.mul(2.0)), replay.count()
    for _ in range(4):
        compute(torch.randn(9))
    assert replay.count() == before


def test_to_record_leaves_random_numbers_to_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What draws none sets no state, behind which another thread would draw the same numbers once more."""
    states: list[Any] = []
    monkeypatch.setattr(torch.random, "set_rng_state", states.append)
    before = replay.count()
    for _ in range(4):
        x = torch.randn(3, 11, requires_grad=True)
        torch.autograd.grad(optiacts.layer_norm(optiacts.gelu(x), (11,)).sum(), x)
    assert replay.count() > before and not states


def test_unseen_random_numbers_are_no_part_of_a_plan() -> None:
    @replay.replayed
    def compute(x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            torch.rand(1)
        return x.mul(2.0)

    before = replay.count()
    torch.manual_seed(0)
    wanted = [torch.rand(1) for _ in range(6)][-1]
    torch.manual_seed(0)
    for _ in range(5):
        compute(torch.ones(3))
    assert replay.count() == before and torch.equal(torch.rand(1), wanted)
