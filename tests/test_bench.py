"""`make bench`: what it compares, how it judges, and that every comparison runs."""

import itertools
import math

import pytest

from benchmarks import contract, operations, steps
from benchmarks.timing import bound, in_pairs


def test_the_order_is_a_b_b_a_and_ratios_are_those_of_neighbours() -> None:
    ran: list[str] = []
    pairs = in_pairs(lambda: ran.append("a"), lambda: ran.append("b"), 0.0, 4)
    assert len(pairs.ratios) == 4
    in_turn = [who for who, _ in itertools.groupby(ran[7:])]  # behind the first runs: A, B B, A A, B B, A
    assert "".join(in_turn) == "ababa"
    pairs = type(pairs)((1.0, 4.0), (2.0, 2.0))
    assert pairs.ratios == [0.5, 2.0] and pairs.more == [-1.0, 2.0]


def test_the_bound_is_an_order_statistic() -> None:
    ratios = [float(n) for n in range(100)]
    assert bound(ratios) == 59.0  # 50 + 0.98 * sqrt(100)


def row(operation: str, elements: int, ratio: float, more: float = 0.0) -> operations.Row:
    return operations.Row(operation, "float32", elements, 1.0, 1.0, ratio, 1.1 * ratio, more)


def test_each_line_is_judged_and_the_geometric_mean() -> None:
    rows = [row("gelu", 4096, 5.0, more=21.0), row("gelu", 1 << 20, 2.0), row("silu", 1 << 20, 0.5)]
    judged = list(operations.judged(rows, contract.OF_LEVEL["avx512"]))
    assert [each.holds for each in judged] == [False, False, True, True]
    assert judged[-1].bound == 1.0 and "geometric mean" in judged[-1].what
    assert list(contract.verdict(judged)) == [
        "2 of 4 hold",
        "gelu, float32, 1048576 elements: 2.20, above 1.15",
        "gelu, float32, 4096 elements: 21.00 µs more, above 20.00 µs more",
    ]
    assert math.isclose(contract.geometric_mean([2.0, 8.0]), 4.0)


def test_every_operation_runs_in_both_ways() -> None:
    rows = list(operations.rows((operations.FEW,), 0.0))
    assert [each.operation for each in rows] == [name for name in operations.CASES for _ in operations.DTYPES]
    assert all(each.ours_us > 0 and each.ratio_bound >= each.ratio for each in rows)


@pytest.mark.parametrize("name", steps.MODELS)
def test_a_step_holds_less(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PAIRS", 1)
    monkeypatch.setattr(steps, "DTYPES", steps.DTYPES[:1])
    for found in steps.rows(False, 0.0, [name]):
        assert found.ours_held < 0.95 * found.torch_held
        (judged,) = steps.judged([found])
        assert judged.limit == contract.STEP and judged.bound == found.ratio_bound
