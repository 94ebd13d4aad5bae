"""What the launcher does for one call: every variant of every kernel is bound, compiled and started.

There is no GPU: a stand-in for Triton's driver says that the target is sm_90, and writes down what is launched. Each
launch is compared with the one that Triton's own dispatcher makes: the same kernel of the same binary with the same
arguments, the first time and when it is remembered. Sizes of 1, odd rows, rows of whole bytes and of whole words, and
tensors that are not aligned each make variants of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import optiacts
from optiacts.backends.triton import lacking, state
from tests import fresh

ROOT = Path(__file__).parents[1]
SCRIPT = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

launched = []

class Utils:
    loaded = 0
    def load_binary(self, *_):
        self.loaded += 1
        return "module", self.loaded, 32, 0, 1024
    def get_device_properties(self, device): return {"max_shared_mem": 1 << 20}

class Driver:
    utils = Utils()
    def launcher_cls(self, source, metadata): return lambda *given: launched.append(given)
    def get_current_device(self): return 0
    def get_current_stream(self, device=None): return 7
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

driver.set_active(Driver())
import itertools
torch.cuda.current_device = lambda: None  # of a device without a number
from optiacts.backends.triton import chain_launch, gated_launch, guard_launch, launch, norm_launch, start
from optiacts.chains import SavedChain
from optiacts.curves import get
from optiacts.norms import Guard, Norm, Saved

count, alike = 0, True

def as_triton_does(kernel, device, programs, arguments, constants):
    global count, alike
    count += 1
    del launched[:]
    start.start(kernel, device, programs, arguments, constants)
    start.start(kernel, device, programs, arguments, constants)
    alike &= "cubin" in kernel[programs](*arguments, **constants).asm
    first, again, due = launched
    alike &= all(len(a) == len(due) and all(map(same, a, due)) for a in (first, again))
    # as with a profiler's hooks on launches
    start._watched = lambda: True
    start.start(kernel, device, programs, arguments, constants)
    start._watched = watched
    alike &= all(map(same, launched[-1], due))

watched = start._watched

def same(a, b):
    if a is None or isinstance(b, torch.Tensor):  # a hook's part; an address
        return a is None or a == b.data_ptr()
    return type(a) is type(b) and getattr(a, "data", a) == getattr(b, "data", b)  # data: what a launch tells hooks

for module in (chain_launch, gated_launch, guard_launch, launch, norm_launch):
    module.start = as_triton_does
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
for rows, columns, offset in ((1, 16, 0), (6, 40, 0), (6, 40, 1)):
    x = torch.empty(1024, dtype=torch.bfloat16)[offset:][: rows * columns].reshape(rows, columns)
    weight = torch.ones(columns)
    mean, rstd, bits = norm_launch.statistics(x, x, weight, None, Norm(True, 1e-5, remainder=True))
    saved = Saved(x, None, rstd, weight, None, None, None, bits, True, True)
    norm_launch.backward(x, saved, x.dtype, x.dtype)
    guard = Guard(torch.zeros((), dtype=torch.bool), Norm(True, 1e-5).bounds(x.dtype, columns))
    norm_launch.backward(x, saved, x.dtype, x.dtype, guard)
    guard_launch.guarded(weight, None, None, Norm(True, 1e-5), x.dtype, torch.zeros((), dtype=torch.bool), None)
    chain_launch.excess(x, 8.0)
for shape, last in itertools.product(((1, 16, 20), (2, 1, 32), (1, 1, 1)), (False, True)):
    for statistics in ("rows", "batch", "given"):
        y, channels = torch.empty(shape, dtype=torch.bfloat16), shape[2 if last else 1]
        bits = launch.pack(y, get("silu"))
        rstd = torch.ones((shape[0], 1) if statistics == "rows" else channels)
        of = (y, bits, rstd, torch.ones(channels), None, None, None, None, "silu", statistics, True, last)
        chain_launch.backward(y, SavedChain(*of), y.dtype)
print(count, alike)
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
def test_every_variant_is_launched_as_triton_would(told: list[str]) -> None:
    assert told[0].split() == ["163", "True"]


@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
def test_constants_are_numbers_functions_or_flat_tuples(told: list[str]) -> None:
    """Triton 3.6, which PyTorch 2.10 and 2.11 bring, compiles no tuples of tuples (seen on an H100)."""
    assert set(told[1:]) == {"True"}


def test_importing_the_library_does_not_load_triton() -> None:
    code = "import sys, torch; before = 'triton' in sys.modules; import optiacts, optiacts.backends.triton; "
    code += "assert before or 'triton' not in sys.modules"
    fresh.run(code, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, check=True)


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
