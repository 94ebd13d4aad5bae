"""The import is light and works from the source tree."""

import subprocess
import sys
from pathlib import Path

from tests import fresh

SOURCE = Path(__file__).parents[1] / "src"
ENVIRONMENT = {"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}


def test_import_loads_neither_triton_nor_transformers() -> None:
    code = "import torch, sys; before = set(sys.modules); import optiacts; print(*sorted(set(sys.modules) - before))"
    told = fresh.run(code, env=ENVIRONMENT, check=True).stdout
    added = {name for name in told.split() if not name.startswith("optiacts")}
    heavy = {"triton", "transformers", "matplotlib", "rich", "click", "numpy"}
    assert not {name.split(".")[0] for name in added} & heavy
    assert not {"torch._dynamo", "torch._inductor"} & added


def test_it_works_from_the_source_tree_and_initialises_no_cuda() -> None:
    """Imported before torch, with warnings as errors."""
    code = (
        "import optiacts, torch; x = torch.ones(1, requires_grad=True); optiacts.gelu(x).backward(); "
        "print(x.grad.item(), torch.cuda.is_initialized())"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    told = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    gradient, initialised = told.split()
    assert abs(float(gradient) - 1.0833155) < 1e-6 and initialised == "False"
