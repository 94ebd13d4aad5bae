"""What the compilers make of the GPU kernels, ahead of time: no spills, wide accesses, few instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optiacts.backends.triton import lacking

ROOT = Path(__file__).parents[1]
TARGETS = ("sm_90",)  # the others take minutes: benchmarks/results/gpu_codegen.jsonl has them
INSTRUCTION_BUDGET = 40  # per bf16 element of a backward, at 3 TB/s

pytestmark = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, Any]]:
    command = [sys.executable, "benchmarks/gpu_codegen.py", "--dtypes", "bfloat16", "float32", "--targets", *TARGETS]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TRITON_INTERPRET": "0"}
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_kernel_is_compiled_for_every_target(kernels: list[dict[str, Any]]) -> None:
    words = [k for k in kernels if k["variant"] == "words"]
    assert len(words) == len(TARGETS) * (2 * (5 + 5 + 1 + 2 + 2 + 2 + 2 + 1) + 3)  # and three in closed form
    assert len(kernels) - len(words) == len(TARGETS) * 8 * 2  # rows of whole bytes, and rows that end within one


def test_no_registers_are_spilled(kernels: list[dict[str, Any]]) -> None:
    assert [k for k in kernels if k["spills"] or k["stack_bytes"]] == []


def test_tensors_move_16_bytes_at_a_time_and_bits_in_words(kernels: list[dict[str, Any]]) -> None:
    """Everything is 16 bytes wide but the 4-byte words of bits: two accesses per tensor, one in gated kernels."""
    tensors = {
        "forward": (2, 2),
        "pack": (2, 0),
        "backward": (4, 2),
        "gated_forward": (2, 2),
        "gated_backward": (3, 2),
        "dropped_backward": (4, 2),
        "dropped_gated_backward": (3, 2),
        "scale_kept": (2, 2),
    }
    for kernel in (k for k in kernels if k["variant"] == "words"):
        loads, stores = tensors[kernel["kernel"]]
        loads += kernel["kernel"] == "gated_forward" and kernel["curve"] == "relu"  # PyTorch's s
        assert kernel["loads"].count(16) == loads, kernel
        assert kernel["stores"].count(16) == stores, kernel
        bits = [width for width in kernel["loads"] + kernel["stores"] if width != 16]
        assert set(bits) == (set() if kernel["curve"] == "softplus" else {4}), kernel


def test_the_16_bit_backward_stays_within_its_budget(kernels: list[dict[str, Any]]) -> None:
    backwards = [
        k for k in kernels if k["kernel"] == "backward" and k["dtype"] == "bfloat16" and k["variant"] == "words"
    ]
    assert len(backwards) == 6 * len(TARGETS)
    assert max(k["instructions_per_element"] for k in backwards) <= INSTRUCTION_BUDGET


def test_chains_spill_nothing_and_move_tensors_16_bytes_at_a_time() -> None:
    """Two accesses each to grad, y and dx; planes and channels last, one pass or two, and whole rows."""
    command = [sys.executable, "benchmarks/gpu_chain_codegen.py", "--dtypes", "bfloat16", "--curves", "silu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TRITON_INTERPRET": "0"}
    run = subprocess.run([*command, "--targets", "sm_90"], cwd=ROOT, env=environment, check=True, capture_output=True)
    chains = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(chains) == 7
    assert [k for k in chains if k["spills"] or k["stack_bytes"]] == []
    for kernel in (k for k in chains if k["pass"] != "rows"):
        assert kernel["loads"].count(16) == 4
        assert kernel["stores"].count(16) == (0 if kernel["pass"] == "sums" else 2)
