"""Arrows point down: a room imports nothing above it (DESIGN: the house)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import optiacts

ROOMS = [
    ["_torch", "overwritten", "packing", "layouts"],
    ["curves"],
    ["decoders"],
    ["backends"],
    ["ops"],
    ["functional", "functional_gated"],
    ["nn", "nn_gated"],
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
ROOT = Path(optiacts.__file__).parent


def imported(file: Path) -> set[str]:
    """The rooms that a file imports from; those without a rank here are above all."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("optiacts.")}


@pytest.mark.parametrize("room", RANK)
def test_a_room_imports_nothing_above_it(room):
    files = [*(ROOT / room).rglob("*.py"), *ROOT.glob(f"{room}.py")]
    for file in files:
        above = {name for name in imported(file) if RANK.get(name, len(ROOMS)) > RANK[room]}
        assert not above, f"{file.relative_to(ROOT)} imports {', '.join(sorted(above))}"


def test_fitting_is_imported_by_nobody_who_runs():
    """It needs mpmath and numpy."""
    code = "import sys, optiacts.decoders, optiacts.backends.native; print('mpmath' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    )
