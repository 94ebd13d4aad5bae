"""The first calls make the tables that all later ones read: wherever they happen, these are the same."""

import json

import pytest

from tests import fresh
from tests.first_use import SITUATIONS


@pytest.fixture(scope="module")
def afterwards() -> dict[str, str]:
    return json.loads(fresh.run("from tests.first_use import main; main()", check=True).stdout)


def test_gradients_are_told(afterwards: dict[str, str]) -> None:
    assert len(json.loads(afterwards["nothing"])) == 8


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "nothing"])
def test_first_use(situation: str, afterwards: dict[str, str]) -> None:
    assert afterwards[situation] == afterwards["nothing"]
