"""How a kernel is started on an NVIDIA GPU: past Triton's dispatcher, which takes the host longer than all else.

At each call Triton finds out anew which compiled kernel fits: by the dtypes of the tensors and whether they lie at
multiples of 16 bytes, by some properties of numbers, and by constants and options, which it writes out as text. Here
kernels are found by as much and more: by the numbers themselves, and apart for each set of constants. What is not
found is compiled by Triton, and started in the same way, so that the first-use proof sees what serves later. On other
devices Triton goes by more than that, so it starts kernels itself.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from optiacts.backends.triton.elementary import VENDOR

_MOST = 1024  # compiled kernels that one set of constants remembers: one for each combination of numbers


class Constants(dict[str, Any]):
    """The constants and compiler options of a kernel, with what was compiled for them. Made once and not changed."""

    def __init__(self, constants: dict[str, Any]) -> None:
        super().__init__(constants)
        self.compiled: dict[tuple[Any, ...], _Compiled] = {}


class _Compiled(NamedTuple):
    """A compiled kernel: of which kernel it is, what starts it, and the constants that follow its arguments."""

    kernel: Any
    binary: Any
    run: Any
    what: tuple[Any, Any]  # the loaded function, and what the launcher wants to know of it
    last: tuple[Any, ...]


def start(
    kernel: Any, device: torch.device, programs: tuple[int, ...], arguments: tuple[Any, ...], constants: Constants
) -> None:
    """``kernel[programs](*arguments, **constants)`` on ``device`` and its current stream."""
    with on_device(device):
        if VENDOR != "cuda":
            kernel[programs](*arguments, **constants)
            return
        key, given = _told(device, arguments)
        found = constants.compiled.get(key)
        if found is None or found.kernel is not kernel:
            found = _compiled(kernel, programs, arguments, constants)
            if len(constants.compiled) >= _MOST:
                constants.compiled.clear()
            constants.compiled[key] = found
        grid = (*programs, 1, 1)[:3]
        if _watched():
            found.binary[grid](*given, *found.last)
            return
        stream = driver.active.get_current_stream(device.index)
        found.run(*grid, stream, *found.what, *_UNWATCHED, *given, *found.last)


def _told(device: torch.device, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Any]]:
    """What a compiled kernel depends on, and more; and the arguments, with addresses in place of tensors.

    Of a tensor the driver would be asked what lies at its address. 1 and 1.0 are equal, but not to a compiler.
    """
    key: list[Any] = [device.index]
    given = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            address = argument.data_ptr()
            given.append(address)
            key += argument.dtype, address % 16 == 0
        else:
            given.append(argument)
            key += argument.__class__, argument
    return tuple(key), given


def _compiled(kernel: Any, programs: tuple[int, ...], arguments: tuple[Any, ...], constants: Constants) -> _Compiled:
    binary = kernel.warmup(*arguments, grid=programs, **constants)
    last = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
    return _Compiled(kernel, binary, binary.run, (binary.function, binary.packed_metadata), last)


_UNWATCHED = (None, None, None)  # what hooks are told, and the hooks before and after a launch


def _watched() -> bool:
    """Whether a profiler has hooks on launches."""
    hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` the current one, if it is not; Triton launches on the current device and its stream."""
    if device.type == "cpu":  # interpreted
        return _nothing
    of = torch.cuda if device.type == "cuda" else torch.get_device_module(device)
    return _nothing if device.index == of.current_device() else of.device(device)


_nothing = contextlib.nullcontext()
