"""Which backend serves: by the device, by ``OPTIACTS_BACKEND``, and by what the first-use proof found.

A choice is made once for a *kind of kernel* (what it computes, with which curve, dtypes and device), and remembered.

Environment: ``OPTIACTS_BACKEND`` = eager, native or triton takes that one and no other. Unset, each device has the
fastest one that serves it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optiacts import replay
from optiacts._torch import is_capturing, is_fake
from optiacts.backends import eager, native, triton
from optiacts.backends.notices import tell
from optiacts.backends.proof import NotNowError, Trial, failure

NAMES = ("eager", "native", "triton")


class Family(NamedTuple):
    """The modules in which the three backends have one family of operations."""

    eager: Any
    native: Any
    triton: Any


def fast(device: torch.device) -> Any:
    """The backend made for ``device``: native or triton, or eager where neither can serve it.

    ``ValueError`` if ``OPTIACTS_BACKEND`` names nothing, or a backend that cannot serve the device.
    """
    forced = wanted()
    if forced is not None:
        if device.type != "meta" and (lack := forced.unavailable(device)) is not None:
            raise ValueError(f"{VARIABLE}={forced.name} cannot serve {device}: {lack}")
        return eager if device.type == "meta" else forced
    found = native if device.type == "cpu" else triton
    return found if found.unavailable(device) is None else eager


VARIABLE = "OPTIACTS_BACKEND"


@functools.cache
def wanted() -> Any:
    """The backend that the environment forces, or None."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    if name not in NAMES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(NAMES)}; got {name!r}")
    return {"eager": eager, "native": native, "triton": triton}[name]


chosen: dict[Hashable, Any] = {}  # by the kind of kernel; who selects looks here first


class Result(NamedTuple):
    """What a trial found."""

    what: str  # the kind of kernel, for people
    device: str
    wrong: str  # why it does not serve; empty if it does


found: dict[Hashable, Result] = {}  # by the kind of kernel, of those that were tried


def choose(
    kind: Hashable,
    what: str,
    of: Tensor,
    family: Family,
    able: Callable[[Any, Any], bool],
    trial: Trial,
    simplify: Callable[[Any], bool] = lambda kernels: False,
) -> Any:
    """The module of ``family`` that serves tensors like ``of``, remembered as that of ``kind``.

    Args:
        what: the kind of kernel, for people.
        able: whether a backend has the kernels, from its module and from that of the family.
        trial: proves them.
        simplify: makes kernels go a simpler way, if they have one left; they are tried again then.
    """
    device = of.device
    backend = fast(device)
    kernels = getattr(family, backend.name)
    if kernels is not family.eager and not able(backend, kernels):
        kernels = family.eager
    if kernels is not family.eager:
        if is_fake(of):
            return kernels  # which computes nothing
        if is_capturing(device):
            return family.eager  # a comparison would have to wait
        try:
            kernels, found[kind] = _proven(kernels, family, f"{what} ({kernels.name})", device, trial, simplify)
        except NotNowError:
            return family.eager
    chosen[kind] = kernels
    replay.forget()  # what another backend was recorded with while this one could not be tried
    return kernels


def _proven(
    kernels: Any, family: Family, what: str, device: torch.device, trial: Trial, simplify: Callable[[Any], bool]
) -> tuple[Any, Result]:
    reason = failure(kernels, trial, device)
    while reason is not None and simplify(kernels):
        reason = failure(kernels, trial, device)
    result = Result(what, str(device), reason or "")
    if reason is None:
        return kernels, result
    tell(f"{what} on {device} is left to plain PyTorch operations, which take longer. {reason}")
    return family.eager, result


class NotTracedError(Exception):
    """There is nothing that a compiler could be given in the place of an op."""


def traceable(device: torch.device) -> bool:
    """Whether a compiler writes better kernels for ``device`` than an op of ours can start: on GPUs.

    Not where the environment names a backend.
    """
    return device.type not in ("cpu", "meta") and wanted() is None


def forget() -> None:
    """Forgets all choices, and what the environment said: for tests."""
    wanted.cache_clear()
    chosen.clear()
    found.clear()
    replay.forget()
