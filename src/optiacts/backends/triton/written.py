"""Functions for kernels whose text is written at run time, with a curve's numbers in it.

Numbers in the text reach the compilers of all versions of Triton alike; tuples of tuples among a kernel's constants
reach only those from 3.7 on.
"""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl


def written(name: str, parameters: str, body: str, scope: Mapping[str, Any]) -> Any:
    """The Triton function ``name(parameters)`` with the lines ``body``, which see ``tl`` and what is in ``scope``.

    ``name`` may be any text. Triton tells functions apart by their source, so equal ones are compiled once.
    """
    identifier = "".join(c if c.isalnum() else "_" for c in name)
    lines = [f"def {identifier}({parameters}):\n", *(f"    {line}\n" for line in body.splitlines())]
    file = f"<optiacts: {name}>"
    linecache.cache[file] = (sum(map(len, lines)), None, lines, file)  # where Triton reads it
    names: dict[str, Any] = {"tl": tl, **scope}
    exec(compile("".join(lines), file, "exec"), names)
    return triton.jit(names[identifier])
