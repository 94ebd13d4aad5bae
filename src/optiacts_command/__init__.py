"""The console command. It reads its arguments before it imports torch: `--help` and mistakes are answered at once."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from importlib.util import find_spec, module_from_spec

_PACKAGES = ("optiacts", "optiacts.reporting")  # whose own code imports torch


def main() -> int:
    """Runs the command line; the exit status. The process ends soon after it."""
    if "optiacts" not in sys.modules:
        _parse()
    done: list[int] = []
    # before torch and its like come with theirs: the first that is registered runs last
    atexit.register(_leave, done)
    gc.disable()  # what is imported stays
    try:
        from optiacts.cli import main as run
    finally:
        gc.enable()
    done.append(run())
    return done[0]


def _leave(done: list[int]) -> None:
    """Ends a process that has done its work: to take all that torch and transformers made apart takes seconds."""
    if not done:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads them; Python tells
        return
    os._exit(done[0])


def _parse() -> None:
    """Ends the process where there is nothing to run. The packages are there without what they import."""
    for name in _PACKAGES:
        spec = find_spec(name)
        assert spec is not None
        sys.modules[name] = module_from_spec(spec)
    try:
        from optiacts.cli import parse

        parse()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "optiacts"]:
            del sys.modules[name]
