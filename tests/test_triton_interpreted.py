"""The GPU kernels, run by Triton's interpreter on a CPU: the checks of `make gpu-check` that need no GPU.

They run in a process of their own, since Triton decides at its import whether to interpret.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optiacts.curves import CURVES

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


FUSED = [name for name, curve in CURVES.items() if curve.triton is not None]


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("gpu_check")
    command = [sys.executable, "benchmarks/gpu_check.py", "--dry", "--checks", "--output", str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True)
    (report,) = output.glob("*.json")
    return json.loads(report.read_text())["checks"]


def test_no_check_fails(checks: dict[str, Any]) -> None:
    assert {name: check["found"] for name, check in checks.items() if check["status"] == "failed"} == {}
    needs_gpu = {
        "first_use_proof",
        "dropout_draws_as_pytorch",
        "conversion",
        "norms_are_exact_or_an_error",
        "norms_compiled",
        "graph_capture",
        "streams",
        "other_device",
        "no_synchronisation",
    }
    assert {name for name, check in checks.items() if check["status"] == "skipped"} == needs_gpu


def test_every_16_bit_input_is_decoded_within_the_contract(checks: dict[str, Any]) -> None:
    found = checks["decode_16_bit"]["found"]
    assert len(found) == 2 * len(FUSED)
    assert max(ratio for ratios in found.values() for ratio in ratios.values()) <= 1.3


def test_float32_is_decoded_within_the_contract(checks: dict[str, Any]) -> None:
    found = checks["decode_float32"]["found"]
    assert len(found) == len(FUSED)
    assert max(errors["far"] for errors in found.values()) <= 2e-6
    assert max(errors["rounded"] for errors in found.values()) <= 1.2e-4
    # near the minimum no decoder undoes PyTorch's rounding, which depends on the CPU: see docs/accuracy.md
    assert all(errors["anywhere"] <= max(1.2e-4, errors["lost"]) for errors in found.values())


def test_every_16_bit_output_is_that_of_the_mathematics(checks: dict[str, Any]) -> None:
    found = checks["forward_is_exact"]["found"]
    assert len(found) == 2 * len(FUSED)
    assert max(found.values()) <= 1
