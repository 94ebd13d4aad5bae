"""The first calls make the tables that all later ones read: wherever they happen, these are the same."""

import json
import subprocess
import sys

import pytest

from tests.first_use import SITUATIONS


@pytest.fixture(scope="module")
def afterwards() -> dict[str, str]:
    command = [sys.executable, "-m", "tests.first_use"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_gradients_are_told(afterwards: dict[str, str]) -> None:
    assert len(json.loads(afterwards["nothing"])) == 8


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "nothing"])
def test_first_use(situation: str, afterwards: dict[str, str]) -> None:
    assert afterwards[situation] == afterwards["nothing"]
