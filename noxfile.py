"""`make matrix`: the core tests on each version of Python and PyTorch that is promised, or is the newest.

    nox --list
    nox --session "core(python='3.12', torch='2.8.0')"             one pair; its row of docs/matrix.md is written anew
    nox --reuse-venv yes --session ... -- -k gelu -x       what follows goes to pytest; nothing is written then

A Python that is not on this machine is left out. One wheel serves all pairs, as it does when it is released. An
environment has up to 7 GB (PyTorch's GPU libraries) and is deleted once its row is written.
"""

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["core"]
nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "uv|virtualenv"  # uv unpacks PyTorch once for all environments

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
FLOOR = "2.8.0"  # as in pyproject.toml
NEWEST = "newest"  # whatever pip finds
TORCHES = (FLOOR, "2.11.0", "2.13.0", NEWEST)  # 2.11.0 is what has run on GPUs
UNRELEASED = {("3.14", FLOOR)}  # older than that Python

CORE = "everywhere first_use forward functional gated_autograd gradients memory ops torch_facts transforms".split()
NEEDED = ("expecttest", "hypothesis", "mpmath", "numpy", "pytest", "pytest-timeout", "pytest-xdist")
OUT = Path("out/matrix")


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel that every pair tests."""
    shutil.rmtree(OUT, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(OUT), silent=True)


@nox.session(requires=["wheel"])
@nox.parametrize("python,torch", [(p, t) for p in PYTHONS for t in TORCHES if (p, t) not in UNRELEASED])
def core(session: nox.Session, torch: str) -> None:
    """The tests of what everything rests on, and a row of docs/matrix.md."""
    (built,) = OUT.glob("*.whl")
    session.install(str(built), "torch" if torch == NEWEST else f"torch=={torch}", *NEEDED, silent=True)
    tests = [f"tests/test_{name}.py" for name in CORE]
    if session.posargs:
        session.run("python", "-m", "pytest", *tests, *session.posargs)
        return
    found = OUT / "tests.xml"
    found.unlink(missing_ok=True)
    session.run("python", "-m", "pytest", "-rs", f"--junit-xml={found}", *tests, success_codes=[0, 1])
    try:
        session.run("python", "tools/matrix.py", str(found))
    finally:
        shutil.rmtree(session.virtualenv.location)
