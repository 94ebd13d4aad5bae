"""Modules whose ``forward`` stands on the instance although it is their class's own.

accelerate's ``add_hook_to_module`` keeps ``module.forward`` as ``_old_forward`` and puts a wrapper that calls it on
the instance. Taking the hook off leaves the bound method there, and so does ``kernels`` where it has no kernel. Such
a module does what its class says. So it is converted as others are, and the hook calls what it was converted to.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

from torch.nn import Module

_KEPT = "_old_forward"  # accelerate's name for what its wrapper calls


@contextlib.contextmanager
def hooks_aside(model: Module) -> Iterator[None]:
    """Meanwhile no module of ``model`` has such a ``forward``; afterwards hooks call what the class then says."""
    wrappers: list[tuple[Module, Any]] = []
    for module in model.modules():
        if is_own(module, "forward"):
            del module.__dict__["forward"]
        elif "forward" in module.__dict__ and is_own(module, _KEPT):
            wrappers.append((module, module.__dict__.pop("forward")))
    try:
        yield
    finally:
        for module, wrapper in wrappers:
            module.__dict__[_KEPT] = type(module).forward.__get__(module)
            module.__dict__["forward"] = wrapper


def is_own(module: Module, name: str) -> bool:
    """Whether ``name`` on the instance is the bound ``forward`` of the module's class."""
    kept = module.__dict__.get(name)
    return (
        isinstance(kept, types.MethodType)
        and kept.__self__ is module
        and kept.__func__ is getattr(type(module), "forward", None)
    )
