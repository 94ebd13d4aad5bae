"""How much smaller a CPU process becomes, beside what it holds for backward: ``python -m benchmarks.resident``.

Trains MLPs for a few steps in a fresh process each time, with PyTorch's GELU and with ours, under glibc's own rules
and with ``MALLOC_MMAP_THRESHOLD_=1000000``. The tensors are 16 MiB large.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import torch
from torch import nn

import optiacts

LAYERS, WIDTH, INNER, TOKENS, STEPS = 6, 512, 4096, 1024, 2
ACTIVATIONS = {"PyTorch": nn.GELU, "OptiActs": optiacts.GELU}
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "MALLOC_MMAP_THRESHOLD_=1000000": {"MALLOC_MMAP_THRESHOLD_": "1000000"},
}
MIB = 2**20


def measure(name: str) -> tuple[int, int]:
    """In this process: bytes held for backward, and by how much the process has grown at its peak."""
    activation = ACTIVATIONS[name]
    layers = [nn.Sequential(nn.Linear(WIDTH, INNER), activation(), nn.Linear(INNER, WIDTH)) for _ in range(LAYERS)]
    model, x = nn.Sequential(*layers), torch.randn(TOKENS, WIDTH)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    small = torch.randn(1, WIDTH)
    model(small).sum().backward()  # what is loaded and made on first use
    before = _peak()
    for _ in range(STEPS):
        model(x).square().mean().backward()
    after = _peak()
    return optiacts.saved_memory(model, x).bytes, after - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Prints the table of docs/native.md."""
    print("| | PyTorch | OptiActs | change |")
    print("|---|---:|---:|---:|")
    for words, setting in SETTINGS.items():
        results = {name: _in_a_fresh_process(name, setting) for name in ACTIVATIONS}
        if not setting:
            _row("held for backward", *(held for held, _ in results.values()))
        _row(f"growth of the process, {words}", *(grown for _, grown in results.values()))


def _row(words: str, theirs: int, ours: int) -> None:
    print(f"| {words} | {theirs / MIB:.0f} MiB | {ours / MIB:.0f} MiB | {ours / theirs - 1:+.0%} |")


def _in_a_fresh_process(name: str, setting: dict[str, str]) -> tuple[int, int]:
    command = [sys.executable, "-m", "benchmarks.resident", name]
    done = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True, check=True)
    held, grown = json.loads(done.stdout)
    return held, grown


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
