"""How a kernel is started on an NVIDIA GPU: past Triton's dispatcher, which takes the host longer than all else.

At each call Triton finds out anew which compiled kernel fits: by the dtypes of the tensors and whether they lie at
multiples of 16 bytes, by some properties of numbers, and by constants and options, which it writes out as text. Here
kernels are found by as much and more: by the numbers themselves, and apart for each set of constants. What is not
found is compiled by Triton, and started in the same way, so that the first-use proof sees what serves later. On other
devices Triton goes by more than that, so it starts kernels itself.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime import driver

from optiacts import recording
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
    """``kernel[programs](*arguments, **constants)`` on ``device`` and its current stream.

    The arguments are tensors or None, and after them numbers or None, as the names of the kernel's say.
    """
    of = torch.cuda if device.type in ("cuda", "cpu") else torch.get_device_module(device)
    start_here = _start if VENDOR == "cuda" else _start_by_triton
    if VENDOR == "interpreted" or device.index == of.current_device():
        start_here(kernel, device.index, programs, arguments, constants)
        return
    recording.impure()  # plans leave the current device as it is
    with of.device(device):
        start_here(kernel, device.index, programs, arguments, constants)


def _start_by_triton(
    kernel: Any, index: int | None, programs: tuple[int, ...], arguments: tuple[Any, ...], constants: Constants
) -> None:
    started = functools.partial(kernel[programs], **constants)
    recorder = recording.recorder()
    if recorder is None:
        started(*arguments)
        return
    if VENDOR != "interpreted":
        recorder.expect(torch.get_device_module().current_device)
    recorder.call(started, *arguments)


def _start(
    kernel: Any, index: int | None, programs: tuple[int, ...], arguments: tuple[Any, ...], constants: Constants
) -> None:
    # every call of Python counts here: some thousand launches make a training step
    pointers = _pointers.get(kernel.fn) or _count_pointers(kernel)
    tensors, numbers = arguments[:pointers], arguments[pointers:]
    addresses = [None if t is None else t.data_ptr() for t in tensors]  # of a tensor the driver would be asked
    dtypes = [None if t is None else t.dtype for t in tensors]
    aligned = [a is None or a % 16 == 0 for a in addresses]
    classes = [n.__class__ for n in numbers]  # 1 and 1.0 are equal, but not to a compiler
    key = (index, *dtypes, *aligned, *classes, *numbers)
    found = constants.compiled.get(key)
    if found is None or found.kernel is not kernel:
        found = _compiled(kernel, programs, arguments, constants)
        if len(constants.compiled) >= _MOST:
            constants.compiled.clear()
        constants.compiled[key] = found
    grid = (*programs, 1, 1)[:3]
    if _watched():
        recording.impure()
        found.binary[grid](*addresses, *numbers, *found.last)
        return
    recorder = recording.recorder()
    if recorder is not None:
        recorder.expect(torch.cuda.current_device)
        recorder.expect(_watched)
        recorder.keep(found)
        stream = recorder.number(driver.active.get_current_stream, index)
        recorder.call(found.run, *grid, stream, *found.what, *_UNWATCHED, *addresses, *numbers, *found.last)
        return
    stream = driver.active.get_current_stream(index)
    found.run(*grid, stream, *found.what, *_UNWATCHED, *addresses, *numbers, *found.last)


_pointers: dict[Any, int] = {}  # how many of a kernel's arguments are tensors


def _count_pointers(kernel: Any) -> int:
    count = sum(name.endswith("_pointer") for name in kernel.arg_names)
    _pointers[kernel.fn] = count
    return count


def _compiled(kernel: Any, programs: tuple[int, ...], arguments: tuple[Any, ...], constants: Constants) -> _Compiled:
    binary = kernel.warmup(*arguments, grid=programs, **constants)
    last = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
    return _Compiled(kernel, binary, binary.run, (binary.function, binary.packed_metadata), last)


_UNWATCHED = (None, None, None)  # what hooks are told, and the hooks before and after a launch
_runtime = triton.knobs.runtime


def _watched() -> bool:
    """Whether a profiler has hooks on launches."""
    before, after = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    return bool(
        (before is not None and getattr(before, "calls", True))
        or (after is not None and getattr(after, "calls", True))
    )
