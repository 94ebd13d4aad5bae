"""The import is light and works from the source tree."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def run(code: str) -> str:
    environment = {"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_import_loads_neither_triton_nor_transformers() -> None:
    code = "import torch, sys; before = set(sys.modules); import optiacts; print(*sorted(set(sys.modules) - before))"
    added = {name for name in run(code).split() if not name.startswith("optiacts")}
    heavy = {"triton", "transformers", "matplotlib", "rich", "click", "numpy"}
    assert not {name.split(".")[0] for name in added} & heavy
    assert not {"torch._dynamo", "torch._inductor"} & added


def test_it_works_from_the_source_tree() -> None:
    use = "x = torch.ones(1, requires_grad=True); optiacts.gelu(x).backward(); print(x.grad.item())"
    assert abs(float(run(f"import optiacts, torch; {use}")) - 1.0833155) < 1e-6


def test_no_cuda_initialisation() -> None:
    assert run("import optiacts, torch; print(torch.cuda.is_initialized())").strip() == "False"
