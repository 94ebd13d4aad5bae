"""Subclasses that nobody notices: whoever keeps a registry of subclasses does not hear of them."""

from __future__ import annotations

from typing import Any

from torch.nn import Module

_QUIET = ("builtins", "abc", "typing")  # their metaclasses and hooks register nothing


class UnfitError(TypeError):
    """Why a class cannot have such a subclass."""


def quiet_subclass(original: type[Module], members: dict[str, Any]) -> type[Module]:
    """A subclass of ``original`` with ``members``, of the same name; its ``__init_subclass__`` does not run.

    Raises:
        UnfitError: a metaclass of the user's would see it.
    """
    metaclass: Any = type(original)
    if metaclass.__module__ not in _QUIET:
        raise UnfitError(f"its metaclass {metaclass.__name__} would see a subclass")
    hooks = (kind for kind in original.__mro__ if "__init_subclass__" in vars(kind))
    if all(kind.__module__ in _QUIET for kind in hooks):
        return metaclass(original.__name__, (original,), members)
    made = metaclass(original.__name__, (Module,), members)
    made.__bases__ = (original,)  # unlike making a class, this runs no hook
    return made
