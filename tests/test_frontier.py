"""The frontier: every method runs, eager ones to the bit; memory is what autograd holds; verdicts follow the rows."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import optiacts
from benchmarks.frontier import gpu, page, picture, turns, verdict
from benchmarks.frontier.__main__ import CPU, PAGE, dry_run, run
from benchmarks.frontier.contender import Contender, Found, Setting, apart
from benchmarks.frontier.inverted import GELU_MINIMUM, SILU_MINIMUM, gelu_slope, silu_slope
from benchmarks.frontier.methods import (
    AGAIN,
    EAGER,
    OURS,
    PLAIN_COMPILED,
    PUBLISHED,
    STAGES,
    Method,
    keeping_products,
    methods,
)
from benchmarks.frontier.models import MODELS, Stack
from benchmarks.frontier.rows import INCOMPARABLE, WRONG, Row, read, rows, write
from optiacts.held.memory import SavedTensors, storage_key

DRY = Setting(dry=True)


def of(model: str) -> list[Method]:
    """All methods; of the compiled ones a single one, since each takes seconds."""
    everything = methods(MODELS[model], "cpu")
    return [
        method
        for method in everything
        if method.budget is None or (model == "Llama" and method.change and method.budget == 0.5)
    ]


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest) -> list[Row]:
    return dry_run(MODELS[request.param], DRY, of(request.param))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_method_runs_and_is_pytorchs(made: list[Row]) -> None:
    """The run itself compares losses and gradients; here that it took all of them, and that memory falls."""
    name = made[0].model
    assert [row.method for row in made] == [method.name for method in of(name)]
    by_name = {row.method: row for row in made}
    eager = by_name["PyTorch"]
    for row in made:
        assert not row.status and row.held and row.peak and row.held < row.peak
        compiled = row.method not in {method.name for method in of(name) if method.exact}
        assert row.loss == eager.loss or (compiled and row.loss == pytest.approx(eager.loss, rel=1e-5)), row.method
        assert row.gradient_apart is not None and row.gradient_apart < (1e-2 if row.family == PUBLISHED else 1e-5)
    stages = [eager, *(row for row in made if row.family == STAGES), by_name["OptiActs"]]
    assert len(stages) == 1 + len(MODELS[name].stages)
    for before, after in itertools.pairwise(stages):
        assert after.held < before.held, after.method  # type: ignore[operator]
    checkpointed = [eager, by_name["every second layer"], by_name["every layer"]]
    ours = [
        by_name["OptiActs" + ", " * (row is not eager) + row.method.replace("PyTorch", "")] for row in checkpointed
    ]
    for before, after in itertools.pairwise(checkpointed):
        assert after.held < before.held  # type: ignore[operator]
    assert ours[1].held < checkpointed[1].held  # type: ignore[operator]
    assert ours[2].held == pytest.approx(checkpointed[2].held, rel=0.02)  # nothing but what goes into the layers


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("last", [False, True], ids=["as it is", "converted"])
def test_held_bytes_are_those_that_autograd_holds(name: str, last: bool) -> None:
    """Of methods that hide nothing from it; beyond them the result is alive, a number."""
    model = MODELS[name]
    method = Method("", OURS, change=model.stages[-1] if last else "")
    found = Contender(model, method, DRY).found()
    stack = method.stack(model.layers(model.dry)).train()
    x, wanted = torch.randn(model.dry.shape), torch.randn(model.dry.shape)
    with SavedTensors() as record:
        loss = stack(x, wanted)
    held = {storage_key(tensor): tensor.untyped_storage().nbytes() for _, tensor in record.held(left_out=(stack,))}
    autograd = sum(nbytes for key, nbytes in held.items() if key != storage_key(x))
    assert found.held == autograd + loss.nbytes


@pytest.mark.parametrize("name", MODELS)
def test_the_last_stage_is_all_that_convert_does(name: str) -> None:
    model = MODELS[name]
    converted = Stack(model.layers(model.dry))
    optiacts.convert(converted)
    last = Method("", OURS, change=model.stages[-1]).stack(model.layers(model.dry))
    x = torch.randn(model.dry.shape)
    assert optiacts.saved_memory(last, x, x).bytes == optiacts.saved_memory(converted, x, x).bytes


def test_products_are_kept_by_selective_checkpointing() -> None:
    """The gradient multiplies as often as without checkpointing."""
    from torch.profiler import ProfilerActivity, profile

    counts = []
    for method in (EAGER, Method("", "", every=1, policy=keeping_products), Method("", "", every=1)):
        model = MODELS["conv net"]
        stack = method.stack(model.layers(model.dry))
        x = torch.randn(model.dry.shape)
        with profile(activities=[ProfilerActivity.CPU]) as record:
            stack(x, x).backward()
        counts.append(sum(event.name == "aten::_convolution" for event in record.events()))
    assert counts[0] == counts[1] == 4 and counts[2] == 8


@pytest.mark.parametrize(
    ("function", "slope", "lowest", "most"),
    [
        (torch.nn.functional.gelu, gelu_slope, GELU_MINIMUM[0], 0.0187),
        (torch.nn.functional.silu, silu_slope, SILU_MINIMUM[0], 0.0029),
    ],
)
def test_the_published_formula_is_as_exact_as_published(
    function: Any, slope: Any, lowest: float, most: float
) -> None:
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64).requires_grad_()
    y = function(x)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    error = (slope(y.detach(), x.detach() < lowest) - wanted).abs().max()
    assert float(error) == pytest.approx(most, rel=0.01)


def found(loss: float = 1.0, gradient: float = 1.0, held: int = 2**20) -> Found:
    return Found(loss, (gradient, *[1.0] * 63), held, 2 * held)


def judged(method: Method, own: Found, model: str = "BERT") -> Row:
    base = found(1.001 if MODELS[model].random else 1.0)
    given = {EAGER: found(), AGAIN: found(), PLAIN_COMPILED: base, method: own}
    times = {each: [turns.Step(1.0, 1.0), turns.Step(1.1, 1.1)] for each in given}
    return rows(MODELS[model], DRY, given, times)[-1]  # type: ignore[arg-type]


def test_a_wrong_loss_or_gradient_does_not_pass() -> None:
    exact = Method("x", OURS, every=1)
    budget = Method("y", "torch.compile", budget=0.5)
    assert judged(exact, found()).status == "" and judged(budget, found(1.001)).status == ""
    with pytest.raises(AssertionError, match=r"x: a loss of 1.0000001, PyTorch's is 1.0"):
        judged(exact, found(1.0000001))
    with pytest.raises(AssertionError, match=r"x: its gradient is 1.2e-01 apart from PyTorch's"):
        judged(exact, found(gradient=2.0))
    with pytest.raises(AssertionError, match=r"y: a loss of 1.1, PyTorch's is 1.0"):
        judged(budget, found(1.1))
    assert judged(budget, found(1.01)).status == INCOMPARABLE  # other masks than compiled PyTorch's
    with pytest.raises(AssertionError, match=r"y: a loss of 1.001, where 1.0 was wanted"):
        judged(budget, found(1.001), "Llama")  # which has no dropouts
    wrong = judged(budget, found(1.001, gradient=2.0))
    assert wrong.status == WRONG and not wrong.good and wrong.gradient_apart == pytest.approx(1 / 8)
    assert apart(found(), found(gradient=2.0)) == pytest.approx(1 / 8)


def row(method: str, family: str, held: float, took: float, **other: Any) -> Row:
    fields = {field.name: None for field in dataclasses.fields(Row)}
    values = {
        "model": "a",
        "size": "b",
        "method": method,
        "family": family,
        "status": "",
        "device": "c",
        "dtype": "d",
    }
    values |= {"held": held, "peak": 2 * held, "time": took, "bound": took, "noise": 0.01, "rounds": 2, "threads": 1}
    values |= {"milliseconds": 1.0, "torch": "2", "python": "3", "optiacts": "0", "date": "today"}
    return Row(**fields | values | other)


EAGER_ROW = row("PyTorch", EAGER.family, 100.0, 1.0)
HOLDING = [
    EAGER_ROW,
    row("every second layer", EAGER.family, 60.0, 1.2),
    row("every layer", EAGER.family, 20.0, 1.4),
    row("OptiActs", OURS, 50.0, 1.005),
    row("OptiActs, every layer", OURS, 20.0, 1.3),
]


def test_the_claims_where_they_hold() -> None:
    free = verdict.free(HOLDING, "PyTorch", "held")
    assert free is not None and free.holds and free.least.method == "OptiActs"
    duel = verdict.duel(HOLDING, EAGER.family, OURS, "held")
    assert [ratio for _, ratio in duel.ratios] == pytest.approx([1.005, 1.005 / 1.2, 1.3 / 1.4])
    assert duel.never_slower and not duel.holds and duel.faster == 2  # level with PyTorch where that holds 100
    faster = verdict.duel([*HOLDING, row("OptiActs again", OURS, 70.0, 0.9)], EAGER.family, OURS, "held")
    assert faster.holds
    assert [row.method for row in verdict.front(HOLDING, "held")] == ["OptiActs", "OptiActs, every layer"]
    first, last = verdict.sentences(HOLDING)[0], verdict.sentences(HOLDING)[-1]
    assert first.endswith(
        "nobody holds less than “OptiActs”, which holds 50% of PyTorch's; "
        "nobody has a lower peak than “OptiActs”, which peaks at 50% of PyTorch's."
    )
    assert "never slower by held memory: faster at 2 of 3 amounts, level at 1; never slower by peak" in last


def test_times_that_decide_nothing() -> None:
    restless = [dataclasses.replace(one, noise=0.22) for one in HOLDING]
    assert verdict.sentences(restless) == ["PyTorch differs from itself by up to 22%: these times decide nothing."]


def test_the_claims_where_they_do_not_hold() -> None:
    rival = row("selective", "selective checkpointing", 40.0, 1.0)
    free = verdict.free([*HOLDING, rival], "PyTorch", "held")
    assert free is not None and not free.holds and free.least is rival
    assert (
        "the claim does not hold: “selective” holds the least, 40% of PyTorch's; “OptiActs” 50%"
        in (verdict.sentences([*HOLDING, rival])[0])
    )
    slow = [*HOLDING[:4], row("OptiActs, every layer", OURS, 20.0, 1.5)]
    duel = verdict.duel(slow, EAGER.family, OURS, "held")
    assert not duel.never_slower
    assert verdict.sentences(slow)[-1].startswith(
        "OptiActs + checkpointing against checkpointing alone: the claim does not hold by held memory: "
        "faster at 1 of 3 amounts, level at 1, slower than “every layer” (1.07); "
    )
    larger = verdict.duel(HOLDING[:4], EAGER.family, OURS, "held")
    assert larger.ratios[-1] == (HOLDING[2], None) and not larger.never_slower
    assert "“every layer” (which needs less than any of ours)" in verdict.sentences(HOLDING[:4])[-1]
    # A wrong gradient, and PyTorch's second run, take part in nothing.
    out = [dataclasses.replace(rival, status=WRONG), row("PyTorch again", EAGER.family, 1.0, 0.5)]
    assert verdict.sentences([*HOLDING, *out]) == verdict.sentences(HOLDING)


def test_rows_survive_the_csv_and_the_picture_is_drawn(tmp_path: Path) -> None:
    wrong = row("torch.compile, budget 0", "torch.compile", 5.0, 0.9, status=WRONG)
    failed = dataclasses.replace(
        wrong, method="Inverted", held=None, peak=None, time=None, bound=None, status="no compiler"
    )
    given = [*HOLDING, wrong, failed]
    write(given, tmp_path / "rows.csv")
    assert read(tmp_path / "rows.csv") == given
    picture.draw(given, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes()[:4] == b"\x89PNG"
    table = page.written(given)
    assert "| **OptiActs** | 50.0 | 50% | 100.0 | 50% | 1.00 | 1.00 |" in table
    assert "| torch.compile, budget 0 (wrong gradient) | 5.0 | 5% |" in table
    assert "Did not run: Inverted: no compiler." in table
    with pytest.raises(ValueError, match="the page has no <!-- found by make frontier -->"):
        page.put_in("nothing", table)


def test_the_page_says_what_the_committed_figures_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page.put_in(text, page.written(read(CPU) if CPU.exists() else []))


def test_contenders_in_processes_take_turns(capfd: pytest.CaptureFixture[str]) -> None:
    """And one that fails, or is late, is left out with its reason."""
    broken = Method("broken", OURS, every=1, policy=len)
    made = run(MODELS["conv net"], DRY, [EAGER, AGAIN, broken], seconds=0.0, rounds=3, start=120.0)
    eager, again, failed = made
    assert failed.status.startswith("TypeError: ") and failed.held is None and failed.time is None
    assert eager.rounds == 3 and eager.time == 1.0 and again.loss == eager.loss and again.held == eager.held
    assert eager.noise >= max(again.time, 1 / again.time) - 1  # type: ignore[operator, type-var]
    assert "in _serve" in capfd.readouterr().out  # the traceback of what failed
    with pytest.raises(turns.FailedError, match=r"PyTorch itself did not run: left out: no time"):
        run(MODELS["conv net"], DRY, [EAGER], seconds=0.0, rounds=1, start=-1.0)


def test_the_figure_of_gpu_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs every model within its time, and says what the rows say."""
    starts = []

    def canned(model: Any, setting: Setting, chosen: Any, seconds: float, rounds: int, start: float) -> list[Row]:
        starts.append(seconds + start)
        return HOLDING

    monkeypatch.setattr(gpu, "run", canned)
    figure = gpu.frontier(torch.device("cpu"), False)
    assert len(figure) == 3 * (len(HOLDING) + 1) and all(line.keys() == figure[0].keys() for line in figure)
    assert "nobody holds less than “OptiActs”" in figure[len(HOLDING)]["method"]
    assert starts[0] == pytest.approx(gpu.LIMIT / 3, rel=0.01)
