"""Conversion in threads: nothing global is patched, so models elsewhere do not notice."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import optiacts
from tests.behaviour.case import sample
from tests.behaviour.cases_calls import ByZeroArgumentSuper, FunctionElsewhere
from tests.behaviour.cases_gated import Direct
from tests.behaviour.parts import Called

THREADS = 8


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Direct(nn.SiLU()), FunctionElsewhere(), Called(nn.GELU()), ByZeroArgumentSuper())


def _beside(work: Callable[[], object]) -> list[str]:
    """Runs another model in a thread meanwhile; the errors it met."""
    errors: list[str] = []
    stop = threading.Event()
    other, x = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)), sample()
    expected = other(x)

    def once() -> None:
        try:
            if not torch.equal(other(x), expected):
                errors.append("other numbers")
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    def run() -> None:
        while not stop.is_set():
            once()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    return errors


_EXPECTED = _model()(sample())  # once: threads share the random state that models are made from


def _check(model: nn.Module) -> None:
    converted = model(sample())
    assert torch.equal(converted, _EXPECTED)
    converted.sum().backward()


def test_equal_models_converted_and_reverted() -> None:
    models = [_model() for _ in range(3 * THREADS)]

    def convert(model: nn.Module) -> list[str]:
        report = optiacts.convert(model)
        _check(model)
        optiacts.revert(model)
        _check(model)
        optiacts.convert(model)
        _check(model)
        return [f"{entry.path}: {entry.what}" for entry in report.converted]

    told: list[list[str]] = []

    def work() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            told.extend(pool.map(convert, models))

    assert _beside(work) == []
    assert all(paths == told[0] for paths in told)
    assert {type(model[0]) for model in models} == {type(models[0][0])}  # one class, however many threads


def test_one_model_converted_reverted_and_run() -> None:
    model = _model()

    def turn(number: int) -> None:
        for _ in range(5):
            (optiacts.convert, optiacts.revert, _check)[number % 3](model)

    def work() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(turn, range(THREADS)))

    assert _beside(work) == []
    optiacts.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in _model().modules()]


def test_reports_in_threads() -> None:
    models = [_model() for _ in range(THREADS)]

    def report(model: nn.Module) -> str:
        return str(optiacts.convert(model, example_inputs=(sample().requires_grad_(),)))

    texts: list[str] = []

    def work() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            texts.extend(pool.map(report, models))

    assert _beside(work) == []
    assert set(texts) == {texts[0]}


def test_shared_children() -> None:
    child = Direct(nn.SiLU())
    models = [nn.Sequential(child, nn.Linear(16, 16)) for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(optiacts.convert, models))
        list(pool.map(optiacts.convert, models))
    saved = optiacts.saved_memory(child, sample()).bytes
    optiacts.revert(models[0])
    assert type(child) is Direct
    assert saved < optiacts.saved_memory(child, sample()).bytes


def test_memory_reports_in_threads() -> None:
    """The report watches calls of modules, its own thread's alone, and leaves nothing behind."""
    from torch.nn.modules import module as modules

    def report(number: int) -> int:
        return optiacts.report(
            nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)), sample(64, 16)
        ).now.bytes

    call = nn.Module.__call__
    held: list[int] = []

    def work() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            held.extend(pool.map(report, range(THREADS)))

    assert _beside(work) == []
    assert len(set(held)) == 1
    assert nn.Module.__call__ is call
    assert not modules._global_forward_hooks and not modules._global_forward_pre_hooks
