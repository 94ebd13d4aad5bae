"""Every case in every world, or in one of two that are akin: original and converted do the same."""

import importlib
from collections import Counter

import pytest

from tests.behaviour.case import CASES, Case
from tests.behaviour.compare import compare
from tests.behaviour.worlds import EVERYWHERE, KINDRED, TOOLS, World, worlds_of

pytestmark = [  # PyTorch about itself
    pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]

for home in (
    "tracing",
    "calls",
    "classes",
    "gated",
    "recognised",
    "unrecognised",
    "inplace",
    "dropout",
    "stock",
    "norms",
    "chains",
):
    importlib.import_module(f"tests.behaviour.cases_{home}")


def _told(case: Case, worlds: list[World]) -> str:
    return "\n".join(f"{world}: {line}" for world in worlds for line in compare(case, world))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everywhere(case: Case, request: pytest.FixtureRequest) -> None:
    if case.invalid:
        assert not _told(case, EVERYWHERE[:1])
        return
    told = _told(case, worlds_of(case, both_of_a_kind=request.config.getoption("whole_zoo")))
    assert not told, told


@pytest.mark.parametrize("world", TOOLS, ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.tools], ids=str)
def test_tools(case: Case, world: World) -> None:
    if str(case).startswith("dropout:") and str(world) == "two threads":
        pytest.skip("threads share a generator: who draws first is a matter of chance, in PyTorch as well")
    told = _told(case, [world])
    assert not told, told


def test_each_world_is_taken_by_many_cases() -> None:
    taken = Counter(world.name for case in CASES for world in worlds_of(case, both_of_a_kind=False))
    converted = sum(bool(case.saves) for case in CASES)
    for pair in KINDRED:
        assert all(taken[name] > 0.4 * converted for name in pair), (pair, taken)


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)), [n for n in names if names.count(n) > 1]
