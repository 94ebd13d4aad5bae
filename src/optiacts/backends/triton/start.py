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
from torch import Tensor

from optiacts.backends.triton.elementary import VENDOR

_MOST = 1024  # compiled kernels that one set of constants remembers: one for each combination of numbers


class Constants(dict[str, Any]):
    """The constants and compiler options of a kernel, with what was compiled for them. Made once and not changed."""

    def __init__(self, constants: dict[str, Any]) -> None:
        super().__init__(constants)
        self.compiled: dict[tuple[Any, ...], _Compiled] = {}


class _Compiled(NamedTuple):
    """A compiled kernel, of which kernel it is, and the constants that follow its arguments."""

    kernel: Any
    binary: Any
    last: tuple[Any, ...]


def start(
    kernel: Any, device: torch.device, programs: tuple[int, ...], arguments: tuple[Any, ...], constants: Constants
) -> None:
    """``kernel[programs](*arguments, **constants)`` on ``device`` and its current stream."""
    with on_device(device):
        if VENDOR != "cuda":
            kernel[programs](*arguments, **constants)
            return
        key = (device.index, *map(_kind, arguments))
        found = constants.compiled.get(key)
        if found is None or found.kernel is not kernel:
            found = _compiled(kernel, programs, arguments, constants)
            if len(constants.compiled) >= _MOST:
                constants.compiled.clear()
            constants.compiled[key] = found
        found.binary[(*programs, 1, 1)[:3]](*arguments, *found.last)


def _compiled(kernel: Any, programs: tuple[int, ...], arguments: tuple[Any, ...], constants: Constants) -> _Compiled:
    binary = kernel.warmup(*arguments, grid=programs, **constants)
    return _Compiled(kernel, binary, tuple(constants[name] for name in kernel.arg_names[len(arguments) :]))


def _kind(argument: Any) -> Any:
    """What a compiled kernel depends on, and more: 1 and 1.0 are equal, but not to a compiler."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return argument.__class__, argument


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` the current one, if it is not; Triton launches on the current device and its stream."""
    if device.type == "cpu":  # interpreted
        return _nothing
    of = torch.cuda if device.type == "cuda" else torch.get_device_module(device)
    return _nothing if device.index == of.current_device() else of.device(device)


_nothing = contextlib.nullcontext()
