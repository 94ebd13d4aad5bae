"""The command on a bare install, with torch alone; what `doctor` says of a machine; the version."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optiacts
from optiacts.backends import native, native_library
from tests import fresh
from tests.commands import optiacts as run

ROOT = Path(__file__).parents[1]
EXTRAS = ("click", "matplotlib", "numpy", "rich", "transformers", "triton")
BARE = f"""
import sys, torch
sys.modules |= dict.fromkeys({EXTRAS})  # importing them fails from here on
import runpy
sys.argv = ["optiacts", *sys.argv[1:]]
runpy.run_module("optiacts", run_name="__main__", alter_sys=True)
"""
MODEL = """
import torch

def mlp(batch):
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8)), torch.empty(batch, 8)
"""


def bare(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": f"{ROOT / 'src'}:{folder}", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    return fresh.run(BARE, *arguments, env=paths | environment, cwd=folder)


FIRST = """
import sys
sys.argv[0] = "optiacts"
from optiacts_command import main
try:
    code = main()
except SystemExit as ended:
    code = ended.code
print("torch" in sys.modules, code)
"""


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["--help"], "False 0"),
        (["report", "--help"], "False 0"),
        (["demo", "--help"], "False 0"),
        (["report", "bert-base", "--gpu", "rtx-4091"], "False 2"),
        (["--version"], "True 0"),
    ],
)
def test_help_and_mistakes_are_answered_without_torch(arguments: list[str], end: str) -> None:
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run([sys.executable, "-c", FIRST, *arguments], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == end, done.stderr
    assert "usage: optiacts" in done.stdout + done.stderr or f"optiacts {optiacts.__version__}" in done.stdout


def test_version_without_extras() -> None:
    done = bare("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"optiacts {optiacts.__version__}"), done.stderr


def test_doctor_without_extras() -> None:
    done = bare("doctor")
    assert done.returncode == 0, done.stderr
    assert f"torch {torch.__version__}" in done.stdout and re.search("^cpu: (native|eager)$", done.stdout, re.M)


def test_a_report_of_ones_own_model_without_extras(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    done = bare("report", "mine:mlp", "--batch", "64", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "mine:mlp (64 samples, train mode full): 0.02 -> 0.01 MiB held for backward, -43.1%"
    )
    assert "| activation functions | 0.01 (44%) | 0.25 KiB (1%) |" in done.stdout  # 64 x 32 floats; 64 x 32 bits


@pytest.mark.parametrize("arguments", [("demo",), ("report", "bert-base"), ("report", "mine:mlp", "--plot", "a.png")])
def test_what_needs_more_says_what(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    done = bare(*arguments, folder=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"needs (matplotlib|rich|transformers): pip install (matplotlib|rich|transformers)", done.stderr)


def test_a_wrong_level_is_diagnosed() -> None:
    done = bare("doctor", OPTIACTS_CPU_LEVEL="nonsense")
    if native.unavailable(torch.device("cpu")) is not None:
        pytest.skip("no native kernels")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cpu: none" in done.stdout
    assert "PROBLEM: OPTIACTS_CPU_LEVEL must be one of portable, avx2, avx512; got 'nonsense'" in done.stdout


def test_a_library_that_is_not_there_is_diagnosed() -> None:
    done = bare("doctor", OPTIACTS_CPU_LIBRARY="/no/such.so")
    assert done.returncode == 0 and "cpu: eager" in done.stdout and "/no/such.so does not load" in done.stdout


def test_a_pure_python_install_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPTIACTS_CPU_LIBRARY", raising=False)
    monkeypatch.setattr(optiacts, "__path__", [str(tmp_path)])
    native_library._load.cache_clear()
    try:
        diagnosis = optiacts.doctor()
    finally:
        native_library._load.cache_clear()
    assert diagnosis.devices[0].backend == "eager" and not diagnosis.cpu and not diagnosis.problems
    assert "pure-Python install" in str(diagnosis) and str(tmp_path) in str(diagnosis)


def test_the_command_alone_shows_its_help() -> None:
    result = run()
    assert result.exit_code == 0 and "doctor" in result.stdout and "report" in result.stdout


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_steps_that_are_none(steps: str) -> None:
    result = run("demo", "--steps", steps)
    assert result.exit_code == 2 and f"must be a number from 1 on; got '{steps}'" in result.stderr
