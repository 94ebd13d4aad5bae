"""The first calls make the tables that all later ones read: wherever they happen, these are the same."""

import subprocess
import sys

import pytest

from tests.first_use import SITUATIONS


def afterwards(situation: str) -> str:
    command = [sys.executable, "-m", "tests.first_use", situation]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def usual() -> str:
    return afterwards("nothing")


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "nothing"])
def test_first_use(situation: str, usual: str) -> None:
    assert afterwards(situation) == usual
