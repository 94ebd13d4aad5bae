"""Triton's interpreter in half the time."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def remember_builtins() -> None:
    """Looks for the builtins of a module of Triton's language once, and not in each call of a device function.

    What gets patched is the same: the names are remembered from before the first patch.
    """
    from triton.language import core
    from triton.runtime import interpreter

    @functools.cache
    def names(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]

    def patch_builtin(package: Any, builder: Any, *scope: Any) -> None:
        for name in names(package):
            member = getattr(package, name)
            if core.is_builtin(member):  # not patched yet
                interpreter._patch_attr(package, name, member, builder, *scope)

    interpreter._patch_builtin = patch_builtin
