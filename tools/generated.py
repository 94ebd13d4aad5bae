"""The command line of the tools that derive committed files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def write_or_check(description: str, target: Path, render: Callable[[], str]) -> int:
    """Writes what ``render`` returns to ``target``; with --check compares the two, and returns 1 if they differ."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    if parser.parse_args().check:
        return int(render() != target.read_text())
    target.write_text(render())
    return 0
