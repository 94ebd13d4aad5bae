"""One case in one world: built twice, one of them converted, both run, every difference told."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import optiacts
from tests.behaviour.case import Case
from tests.behaviour.effects import LOG
from tests.behaviour.sameness import Observed, Reference, described, differences, observe, random_state, seed
from tests.behaviour.worlds import PLAIN, World

Convert = Callable[[nn.Module], Any]
NEARLY = 0.9  # of a hidden tensor: side bits take one thirty-second each


def compare(case: Case, world: World, convert: Convert = optiacts.convert) -> list[str]:
    """What differs between the original and its conversion, in words."""
    try:
        original = world.after(_built(case, world))
    except Exception:
        return []  # not even the original gets there
    seen = observe(original, case, world)
    if world.tool and seen.error:
        return []
    with world.built():
        ours = _built(case, world)
        report, told = _converted(ours, convert) if world is PLAIN else (convert(ours), [])
    ours = world.after(ours)
    converted = observe(ours, case, world)
    if converted.error and _is_allowed(seen, converted.error, case, world, ours):
        return told
    told += _differences(seen, converted, case, world)
    if not told and world.keeps_saving and not seen.error and (case.saves or case.left):
        told += _expectation(case, world, original, ours, report)
    return told


def _differences(seen: Observed, converted: Observed, case: Case, world: World) -> list[str]:
    def compared(reference: Reference | None) -> list[str]:
        own = replace(world, coarse=world.coarse or case.coarse, slack=max(world.slack, case.slack))
        return differences(seen, converted, reference, own)

    def in_float64() -> Observed:
        return observe(world.after(_built(case, world)).double(), case, world, torch.float64)

    if not world.exact or world.tool:
        return compared(None)
    if not world.dtype:
        return compared(in_float64)
    # PyTorch's own error in 16 bits, for norms on a CPU several times ours, may be what makes the difference
    told = compared(None)
    return compared(in_float64) if told and world.dtype.itemsize == 2 else told


def _built(case: Case, world: World) -> nn.Module:
    seed()
    with world.built():
        return world.before(case.make())


def _converted(model: nn.Module, convert: Convert) -> tuple[Any, list[str]]:
    """The report, and what the conversion itself did that nobody may notice."""
    LOG.clear()
    owners = _owners(model)
    before = _noticeable(model, owners)
    report = convert(model)
    after = _noticeable(model, owners)
    told = [
        f"the conversion changed {name}{_keys(before[name], after[name])}"
        for name in before
        if before[name] != after[name]
    ]
    paths = {path for path, _ in model.named_modules()}
    entries = getattr(report, "entries", ())
    told += [f"the report names {e.path}, which is no module" for e in entries if e.path not in paths]
    told += [f"the report leaves {e.path} and gives no reason" for e in entries if not e.what and not e.reason]
    return report, told


def _owners(model: nn.Module) -> list[Any]:
    """Whose names nobody may write to: the user's modules and classes, and PyTorch's."""
    kinds = {kind for m in model.modules() for kind in type(m).__mro__ if kind is not object}
    homes = {sys.modules[k.__module__] for k in kinds if not k.__module__.startswith("torch")}
    return [*homes, *kinds, nn.functional]


def _noticeable(model: nn.Module, owners: list[Any]) -> dict[str, Any]:
    return {
        "attributes": dict(described(model)),
        "tensors": [id(t) for t in [*model.parameters(), *model.buffers()]],
        "gradients": [id(p.grad) for p in model.parameters()],
        "the random state": random_state(),
        "the log": list(LOG),
        "names of modules and classes": {
            f"{owner.__name__}.{name}": id(value) for owner in owners for name, value in list(vars(owner).items())
        },
    }


def _keys(before: Any, after: Any) -> str:
    if not isinstance(before, dict):
        return ""
    return ": " + ", ".join(sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)))


CLASH = "modified by an inplace operation"


def _is_allowed(seen: Observed, error: Any, case: Case, world: World, model: nn.Module) -> bool:
    """Whether this error of the conversion is one that may take the place of what the original did."""
    kind, message, _ = error
    if seen.error:  # both found the same clash; ours may say it in better words, and earlier
        return CLASH in seen.error[1] and issubclass(kind, RuntimeError) and "optiacts" in message
    if world.refusal and world.refusal in message:
        return True
    had_gradients = any(g is not None for g in seen.gradients.values())
    named = any(path and path in message for path, _ in model.named_modules())
    told = issubclass(kind, RuntimeError) and all(word in message for word in ("optiacts", "exclude"))
    return case.may_raise and had_gradients and told and named


def _expectation(case: Case, world: World, original: nn.Module, ours: nn.Module, report: Any) -> list[str]:
    fall = saved_bytes(original, case) - saved_bytes(ours, case)
    told = []
    if case.saves and fall < case.saves * NEARLY * case.hidden:
        reasons = sorted({e.reason for e in report.left})
        told.append(f"saves {fall / case.hidden:.2f} hidden tensors instead of {case.saves}; left: {reasons}")
    if case.saves and not report.converted:
        told.append("the report names nothing that was converted")
    if case.left and fall:
        told.append(f"saves {fall / case.hidden:.2f} hidden tensors instead of being left alone")
    if case.left and world is PLAIN and not any(re.search(case.left, e.reason) for e in report.left):
        told.append(f"no reason for leaving it says {case.left!r}: {[e.reason for e in report.left]}")
    return told


def saved_bytes(model: nn.Module, case: Case) -> int:
    seed()
    leaves = [v.requires_grad_() if torch.is_tensor(v) and v.is_floating_point() else v for v in case.inputs()]
    return optiacts.saved_memory(model, *(v if case.leaf or not _grad(v) else v * 1 for v in leaves)).bytes


def _grad(value: Any) -> bool:
    return torch.is_tensor(value) and value.requires_grad


__all__ = ["Observed", "compare", "saved_bytes"]
