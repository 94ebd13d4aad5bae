"""The console command. It reads its arguments before it imports torch: `--help` and mistakes are answered at once."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec

_PACKAGES = ("optiacts", "optiacts.reporting")  # whose own code imports torch


def main() -> int:
    """Runs the command line; the exit status."""
    if "optiacts" not in sys.modules:
        _parse()
    from optiacts.cli import main as run

    return run()


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
