"""A backend proves itself where nobody could try it: before it first serves, its results are compared with eager's.

A *trial* (see ``optiacts.backends.trials``) runs the kernels of one kind on one device beside eager's, and makes
*claims* about what came out. Where one does not hold, or a compiler or a launch fails, the kernels do not serve, and
a warning says so.

A trial runs in a thread of its own. That has no dispatch modes, no autocast, no inference mode, no transforms and no
saved-tensor hooks, its own stream, and allocates nothing in the memory pool of somebody's CUDA graph; so nothing of
the caller's reaches the trial, and nothing of the trial's reaches the caller. Random numbers come from generators of
its own. The host waits for the device once, for all claims together.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Claim(NamedTuple):
    """What is claimed of some kernels, and whether it holds: one bool on their device."""

    what: str
    holds: Tensor


Trial = Callable[[Any], Iterable[Claim]]  # takes the kernels: a module such as ``backends.native``


class NotNowError(Exception):
    """There is no trying here and now: too little memory is left, or the process is about to end."""


def failure(kernels: Any, trial: Trial, device: torch.device) -> str | None:
    """Why ``kernels`` must not serve, None if every claim of ``trial`` holds, or ``NotNowError`` if it stays open."""

    def tried() -> str | None:
        with torch.no_grad(), _waiting_allowed(device):
            try:
                claims = list(trial(kernels))
                held = torch.stack([claim.holds for claim in claims]).tolist()
            except torch.OutOfMemoryError as error:
                raise NotNowError from error
            except Exception as error:
                return f"{type(error).__name__}: {str(error).strip()[:_LONGEST] or 'no message'}"
        wrong = [claim.what for claim, holds in zip(claims, held, strict=True) if not holds]
        return f"its results differ from plain PyTorch's: {', '.join(dict.fromkeys(wrong))}" if wrong else None

    return _apart(tried)


_LONGEST = 300  # characters of an error that are repeated


def _apart(work: Callable[[], T]) -> T:
    """``work()``, in a thread of its own."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="optiacts proof", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # the interpreter ends
        raise NotNowError from error
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def _waiting_allowed(device: torch.device) -> Iterator[None]:
    """Whoever looks for waits in a training step does not mean this one."""
    mode = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
    if mode == 0:  # setting it makes PyTorch warn
        yield
        return
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
