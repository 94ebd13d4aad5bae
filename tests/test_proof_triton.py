"""GPU kernels prove themselves: those of Triton, run by its interpreter; right ones serve, broken ones do not.

In a process of its own, since Triton decides at its import whether to interpret. The interpreter's exponentials are
numpy's, so that forwards are left to PyTorch's op here, as they are on a GPU where ours would differ.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import fresh

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
import json, warnings
import torch
import optiacts
from optiacts import backends, curves
from optiacts.backends import selection, triton
from optiacts.backends.triton import launch, norm_launch

selection.fast = lambda device: triton  # a CPU in a GPU's place
warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of overflows
found, x = {}, torch.linspace(-4, 4, 131)


def told(select):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        name = select().name
    return name, [str(w.message) for w in caught if "optiacts" in str(w.message)]


def gradient(name, reference):
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optiacts.activation(ours, name).sum().backward()
        optiacts.activation(ours.detach().requires_grad_(), name).sum().backward()
    reference(theirs).sum().backward()
    messages = [str(w.message) for w in caught if "optiacts" in str(w.message)]
    return float((ours.grad - theirs.grad).abs().max()), messages


silu, half, norm = curves.get("silu"), torch.float16, optiacts.norms.Norm(True, 1e-5, remainder=True)
found["silu"] = told(lambda: backends.select(x, silu))
found["fused"] = launch.fused(silu, torch.float32, x.device), launch.fused(silu, half, x.device)
found["softplus"] = told(lambda: backends.select_gated(x, curves.get("softplus")))
found["dropout"] = told(lambda: backends.select_for_dropout(x))
found["norm"] = told(lambda: backends.select_norm_statistics(x.to(half), x.to(half), norm))
batch, z = torch.nn.BatchNorm1d(16), torch.randn(4, 16, 5, requires_grad=True)
optiacts.norm_activation(z, batch, "elu").sum().backward()
found["tried"] = dict((result.what, result.wrong) for result in selection.found.values())

kernel = launch.backward_kernel


class Broken:
    def __init__(self, run): self.run = run
    def __getitem__(self, grid): return lambda *a, **k: self.run(grid, *a, **k)


def wrong(grid, grad, y, bits, grad_x, *more, **constants):
    kernel[grid](grad, y, bits, grad_x, *more, **constants)
    grad_x.mul_(1.01)


def wrong_on_odd_lengths(grid, grad, y, bits, grad_x, *more, **constants):
    kernel[grid](grad, y, bits, grad_x, *more, **constants)
    if constants["PADDED"]:
        grad_x.view(-1)[-1] += 1


def uncompiled(grid, *a, **k):
    from triton.compiler.errors import CompilationError
    raise CompilationError("x = y", None, "no such instruction")


def unlaunched(grid, *a, **k):
    raise RuntimeError("Triton Error [CUDA]: out of resource")


F = torch.nn.functional
for name, run in (("wrong", wrong), ("odd", wrong_on_odd_lengths), ("compiler", uncompiled), ("launch", unlaunched)):
    selection.forget()
    backends.notices._told.clear()
    launch.backward_kernel = Broken(run)
    found[name] = *gradient("softplus", F.softplus), list(optiacts.doctor().kernels)
launch.backward_kernel = kernel
selection.forget()
backends.notices._told.clear()
found["right again"] = *gradient("softplus", F.softplus), list(optiacts.doctor().kernels)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return json.loads(fresh.run(SCRIPT, env=environment, check=True).stdout.splitlines()[-1])


def test_right_kernels_serve(found: dict[str, Any]) -> None:
    for what in ("silu", "softplus", "dropout", "norm"):
        assert found[what] == ["triton", []], what
    assert len(found["tried"]) == 6 and not any(found["tried"].values())
    assert "elu(alpha=1.0), gradients after a norm of batch, float32 (triton)" in found["tried"]


def test_a_forward_unlike_pytorchs_is_left_to_its_op(found: dict[str, Any]) -> None:
    """In the dtype where it was tried: what packs the bits serves on."""
    assert found["fused"] == [False, True]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("wrong", "its results differ from plain PyTorch's: gradients of an even length, gradients of an odd length"),
        ("odd", "its results differ from plain PyTorch's: gradients of an odd length"),
        ("compiler", "CompilationError: "),
        ("launch", "RuntimeError: Triton Error [CUDA]: out of resource"),
    ],
)
def test_a_broken_kernel_does_not_serve(found: dict[str, Any], broken: str, reason: str) -> None:
    error, (message,), diagnosis = found[broken]
    assert error <= 2e-6
    assert f"float32 (triton) on cpu is left to plain PyTorch operations, which take longer. {reason}" in message
    assert f"WARNING: {message.removeprefix('optiacts: ')}" in diagnosis
    error, messages, diagnosis = found["right again"]
    assert error <= 2e-6 and not messages and "1 kinds of kernels, all right" in diagnosis[1]
