"""What the launcher does for one call, up to the driver: every variant of every kernel is bound and compiled.

There is no GPU: a stand-in for Triton's driver says that the target is sm_90, and ``run(warmup=True)`` stops before
the launch. Sizes of 1, odd rows, rows of whole bytes and of whole words each make variants of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import optiacts
from optiacts.backends.triton import lacking, state

ROOT = Path(__file__).parents[1]
SCRIPT = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Driver:
    def get_current_device(self): return 0
    def get_current_stream(self, device=None): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

driver.set_active(Driver())
from optiacts.backends.triton import gated_launch, launch
from optiacts.curves import get

compiled = []

class Warmup:
    def __init__(self, kernel): self.kernel = kernel
    def __getitem__(self, grid):
        return lambda *a, **k: compiled.append(self.kernel.run(*a, grid=grid, warmup=True, **k))

for module, names in ((launch, ("forward_kernel", "backward_kernel")),
                      (gated_launch, ("gated_forward_kernel", "gated_backward_kernel"))):
    for name in names:
        setattr(module, name, Warmup(getattr(module, name)))
gated_launch.fused = lambda curve, *_: curve.triton is not None

for name in ("silu", "softplus"):  # with side bits, and in closed form
    curve = get(name)
    for shape in ((), (1,), (9, 1), (7, 131), (3, 40), (64, 1024)):
        for offset in (0, 1):
            size = torch.Size(shape).numel()
            x = torch.empty(64 * 1024 + 1, dtype=torch.bfloat16)[offset:][:size].reshape(shape)
            bits = None
            if curve.decoder.side_bits:
                bits = launch.forward(x, x, curve)
                launch.pack(x, curve)
            launch.backward(x, x, bits, x, curve)
            h, slot, bits = gated_launch.gated_forward(x, x, curve)
            gated_launch.gated_backward(h, h, slot, bits, curve, h, slot)
print(len(compiled), all("cubin" in kernel.asm for kernel in compiled))
"""


CONSTANTS = """
from triton import JITFunction
import torch
from optiacts.backends.triton import gated_launch, launch
from optiacts.curves import unimodal

for curve in unimodal().values():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        constants = [launch.forward_constants(curve, dtype, True, "cuda"),
                     launch.backward_constants(curve, dtype, "cuda"),
                     gated_launch.gated_forward_constants(curve, dtype, True, "cuda"),
                     gated_launch.gated_backward_constants(curve, dtype, "cuda")]
        for value in (value for some in constants for value in some.values()):
            for number in value if isinstance(value, tuple) else (value,):
                print(isinstance(number, (int, float, JITFunction)))
"""


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What one process prints that runs both."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", SCRIPT + CONSTANTS]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.splitlines()


@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
def test_every_variant_is_bound_and_compiled(told: list[str]) -> None:
    assert told[0].split() == [str(6 * 2 * (5 + 3)), "True"]


@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
def test_constants_are_numbers_functions_or_flat_tuples(told: list[str]) -> None:
    """Triton 3.6, which PyTorch 2.10 and 2.11 bring, compiles no tuples of tuples (seen on an H100)."""
    assert set(told[1:]) == {"True"}


def test_importing_the_library_does_not_load_triton() -> None:
    code = "import sys, torch; before = 'triton' in sys.modules; import optiacts, optiacts.backends.triton; "
    code += "assert before or 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("2.1.0+rocm", "is older than 3.4"),
        ("3.3.1", "is older than 3.4"),
        ("3.4.0", "has not been tried on a GPU, as 3.6 has"),
        ("3.6.0.post1", "has been tried on a GPU"),
        ("3.10.0+git1234", "has not been tried on a GPU, as 3.6 has"),
    ],
)
def test_the_version_of_triton_is_told(version: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    assert state().startswith(f"triton {version} {told}") and state() in optiacts.doctor().kernels
    assert lacking() == (f"triton {version} {told}" if "older" in told else None)
