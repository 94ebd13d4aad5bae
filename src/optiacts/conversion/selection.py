"""Which modules ``include`` and ``exclude`` mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch.nn import Module

Selector = str | type[Module] | Callable[[str, Module], bool]


class Selection:
    """Modules chosen by path, type or predicate, each with all that it contains; ``exclude`` wins."""

    def __init__(
        self,
        model: Module,
        include: Selector | Iterable[Selector] | None,
        exclude: Selector | Iterable[Selector] | None,
    ) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        self._included = {""} if include is None else _matches(modules, _selectors("include", include), "include")
        self._excluded = set() if exclude is None else _matches(modules, _selectors("exclude", exclude), None)

    def __contains__(self, path: str) -> bool:
        return _within(path, self._included) and not _within(path, self._excluded)

    def excludes(self, path: str) -> bool:
        """Whether ``exclude`` names the module or one that contains it."""
        return _within(path, self._excluded)


def _selectors(argument: str, given: Selector | Iterable[Selector]) -> list[Selector]:
    several = isinstance(given, Iterable) and not isinstance(given, (str, type, Module))
    selectors: list[Any] = list(given) if several else [given]  # type: ignore[arg-type]
    for selector in selectors:
        if isinstance(selector, type):
            right = issubclass(selector, Module)
        else:
            right = isinstance(selector, str) or (callable(selector) and not isinstance(selector, Module))
        if not right:
            raise TypeError(
                f"{argument} must be a name pattern, a module class, a function of (name, module), or several of "
                f"these; got {selector!r}"
            )
    return selectors


def _matches(modules: dict[str, Module], selectors: list[Selector], required: str | None) -> set[str]:
    matched: set[str] = set()
    for selector in selectors:
        found = {path for path, module in modules.items() if _match(selector, path, module)}
        if required and isinstance(selector, str) and not found:
            raise ValueError(f"{required} names no module of the model: {selector!r}")
        matched |= found
    return matched


def _match(selector: Selector, path: str, module: Module) -> bool:
    if isinstance(selector, str):
        return fnmatchcase(path, selector)
    if isinstance(selector, type):
        return isinstance(module, selector)
    return bool(selector(path, module))


def _within(path: str, chosen: set[str]) -> bool:
    """Whether ``path`` or a module around it is among the ``chosen``."""
    parts = path.split(".") if path else []
    return any(".".join(parts[:length]) in chosen for length in range(len(parts) + 1))
