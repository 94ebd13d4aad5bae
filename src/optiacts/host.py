"""The module in C that does what the host does in each call: csrc/host/, which is optional as the kernels are.

Small calls wait for Python: of one that works on a few thousand numbers the kernel takes a tenth. Without the
module all is done in Python, with the same results.

Environment: ``OPTIACTS_HOST=0`` does without it, ``OPTIACTS_HOST=FILE`` takes another build of it (`make asan`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
from importlib.machinery import ExtensionFileLoader
from types import ModuleType
from typing import Any

from optiacts._torch import LACKING, MATERIALIZES, SAVES

VARIABLE = "OPTIACTS_HOST"
INTERFACE = 4  # what INTERFACE of csrc/host/module.cpp was when the calls of it were written


@functools.cache
def module() -> Any:
    """The module, or, as a string, why there is none."""
    named = os.environ.get(VARIABLE)
    if named == "0":
        return f"{VARIABLE}=0"
    if LACKING:
        return f"this PyTorch has no {', '.join(LACKING)}"
    if not SAVES or not MATERIALIZES:
        return "this PyTorch keeps what a Function saves in another way"
    try:
        found = _from_file(named) if named else importlib.import_module("optiacts._host")
    except ImportError as error:
        return f"it was not built, most likely for want of a C++17 compiler or of Python's headers ({error})"
    interface = getattr(found, "INTERFACE", 1)
    if interface != INTERFACE:
        return (
            f"{found.__file__} was built from other sources: its interface is {interface}, this package calls "
            f"{INTERFACE}. Install optiacts again, or run `make native` in a checkout"
        )
    return found


def _from_file(path: str) -> ModuleType:
    loader = ExtensionFileLoader("_host", path)
    spec = importlib.util.spec_from_loader("_host", loader)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def lacking() -> str | None:
    """Why there is no module here, or None if there is."""
    found = module()
    return found if isinstance(found, str) else None
