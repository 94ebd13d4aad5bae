import os
from typing import Any

import pytest
import torch

INTERPRETED = not torch.cuda.is_available()
os.environ["TRITON_INTERPRET"] = str(int(INTERPRETED))  # read when Triton is imported
if INTERPRETED:
    torch.set_num_threads(1)

from benchmarks import gpu_interpreter  # noqa: E402
from optiacts import backends, replay  # noqa: E402
from optiacts.backends import eager, triton  # noqa: E402
from optiacts.curves import Curve  # noqa: E402

if (lack := triton.lacking()) is not None:
    pytest.exit(f"nothing to test: {lack}", returncode=0 if INTERPRETED else 2)
if INTERPRETED:
    gpu_interpreter.remember_builtins()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    replay.record_after(1)
    replay.forget()  # what a test puts in the place of something else must be called


@pytest.fixture(autouse=True)
def served_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, CPU tensors go where those of a GPU go."""

    def interpreted(x: torch.Tensor, curve: Curve, scaled: bool = False) -> Any:
        return triton if x.dtype in triton.dtypes else eager

    if INTERPRETED:
        monkeypatch.setattr(backends, "select", interpreted)
        monkeypatch.setattr(backends, "select_gated", interpreted)
