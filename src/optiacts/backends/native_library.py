"""Where the CPU kernels of csrc/ come from: finding the library, binding it with ctypes, its instruction set.

Loaded on first use, never on import. What is not of the interface that this package calls is not used.

Environment: ``OPTIACTS_CPU_LEVEL`` = portable, avx2 or avx512 chooses a lower level than the best one,
``OPTIACTS_CPU_LIBRARY`` names another build of the kernels (`make asan`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch

from optiacts import recording, replay
from optiacts.backends.notices import tell
from optiacts.recording import Kernel

LEVELS = ("portable", "avx2", "avx512")
FILE = "_native.so"
INTERFACE = 10  # what OPTIACTS_INTERFACE of csrc/optiacts.h was when the signatures below were written


_BRIEF = frozenset(("norm_any_bad",))  # kernels that look at a norm's weights alone


def library() -> ctypes.CDLL:
    """The kernels; ``RuntimeError`` if there are none here."""
    recording.impure()  # nobody would see what is called: see ``run``
    return _library()


def _library() -> ctypes.CDLL:
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(f"the native CPU kernels are not available: {loaded}")
    return loaded


@functools.cache
def function(name: str) -> Any:
    """The kernel ``optiacts_<name>``."""
    return getattr(_library(), f"optiacts_{name}")


def run(name: str, *arguments: Any) -> Any:
    """Calls the kernel ``optiacts_<name>``."""
    kernel = function(name)
    answer = kernel(*arguments)
    recorder = recording.recorder()
    if recorder is not None:
        recorder.kernel(_caller(name), kernel.argtypes, arguments, answer, brief=name in _BRIEF)
    return answer


def noted(name: str, *arguments: Any) -> Kernel:
    """What stands in a plan for a call of the kernel ``optiacts_<name>``, which is not made now."""
    return Kernel(_caller(name), function(name).argtypes, arguments)


def run_with(name: str, struct: type[ctypes.Structure], *fields: Any) -> Any:
    """Calls the kernel ``optiacts_<name>``, which takes the address of such a struct."""
    given = struct(*fields)
    answer = function(name)(ctypes.addressof(given))
    recorder = recording.recorder()
    if recorder is not None:
        recorder.kernel(_caller(name), [field[1] for field in struct._fields_], fields, answer)
    return answer


@functools.cache
def _caller(name: str) -> int | None:
    """The address of what calls that kernel with an array of words; None if it cannot be called so."""
    address: int | None = _library().optiacts_caller(name.encode())
    return address


def lacking() -> str | None:
    """Why there are no kernels here, or None if there are."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none. It lies in the package, be that installed, editable or a source tree."""
    folders = [Path(folder) for folder in sys.modules["optiacts"].__path__]
    named = os.environ.get("OPTIACTS_CPU_LIBRARY")
    built = [Path(named)] if named else [folder / FILE for folder in folders if (folder / FILE).exists()]
    if not built:
        return (
            f"this is a pure-Python install: {FILE} was not built, most likely for want of a C++17 compiler. Results "
            "are the same, but take many times as long on a CPU. To build it, install GCC or clang, then install "
            f"optiacts again with pip's --force-reinstall --no-cache-dir. Looked in {', '.join(map(str, folders))}"
        )
    # an editable install and `make native` both make one
    newest = built[0] if named else max(built, key=lambda path: path.stat().st_mtime)
    try:
        library = ctypes.CDLL(str(newest))
        if (interface := _interface(library)) == INTERFACE:
            _declare(library)
    except (OSError, AttributeError) as error:
        return f"{newest} does not load: {error}"
    if interface != INTERFACE:
        reason = (
            f"{newest} was built from other sources: its interface is {interface}, this package calls {INTERFACE}. "
            "Install optiacts again with pip's --force-reinstall --no-cache-dir, or run `make native` in a checkout"
        )
        tell(f"the native CPU kernels are not used: {reason}")
        return reason
    wanted = os.environ.get("OPTIACTS_CPU_LEVEL")
    if wanted:
        _use_level(library, wanted, "OPTIACTS_CPU_LEVEL")
    return library


def _interface(library: ctypes.CDLL) -> int:
    """Which interface a library has; 0 if it tells none."""
    tells = getattr(library, "optiacts_interface", None)
    return 0 if tells is None else int(tells())


def _declare(library: ctypes.CDLL) -> None:
    """Gives the library's functions the signatures of csrc/optiacts.h."""
    address, size, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    pattern, number = ctypes.c_uint32, ctypes.c_float
    rows = [address, size]  # and the distance of its rows
    signatures: dict[str, list[Any]] = {
        "optiacts_caller": [ctypes.c_char_p],
        "optiacts_best_level": [],
        "optiacts_level": [],
        "optiacts_use_level": [count],
        "optiacts_has_threads": [],
        "optiacts_huge_pages": [address, size],
        "optiacts_pack": [count, address, address, size, size, pattern, pattern, count],
        "optiacts_silu": [count, *3 * [address], size, size, number, count],
        "optiacts_backward": [count, *4 * [address], size, size, address, count],
        "optiacts_gated_forward": [count, *rows, *rows, *3 * [address], size, size, number, number, number, count],
        "optiacts_gated_silu": [count, *rows, *rows, *3 * [address], size, size, number, number, number, count],
        "optiacts_gated_backward": [count, *4 * [address], *rows, *rows, size, size, address, count],
        "optiacts_norm_any_bad": [address, address, number, number, number, size],
        "optiacts_norm_statistics": [count, *4 * [address], number, count, *3 * [address], size, size, count],
        "optiacts_layer_norm": [count, *3 * [address], number, *3 * [address], size, size, count],
        "optiacts_norm_backward": [
            *[count, address, count, address, count],
            *4 * [address],
            *[count, address, address, size, address],
            *[count, count, address, address, address],
            *[size, size, count],
        ],
        "optiacts_chain_statistics": [
            *[count, address, *4 * [size]],
            *[count, count, number, address, address, address, count],
        ],
        "optiacts_chain_statistics_workspace": [size, size, count],
        "optiacts_chain_backward": [address],
        "optiacts_copy": [count, address, count, address, size],
        "optiacts_clear": [address, size],
        "optiacts_excess": [count, address, size, number, count],
        "optiacts_pack_dropped": [address, address, size, size, count],
        "optiacts_scale_kept": [count, *3 * [address], size, size, number, count],
        "optiacts_dropped_backward": [count, *4 * [address], size, size, address, number, number, count],
        "optiacts_dropped_gated_backward": [
            *[count, *4 * [address], *rows, *rows],
            *[size, size, address, number, number, count],
        ],
    }
    telling = {"optiacts_norm_any_bad", "optiacts_norm_backward"}
    telling.update(name for name, arguments in signatures.items() if len(arguments) < 2)
    for function, arguments in signatures.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = count if function in telling else None
    library.optiacts_chain_statistics_workspace.restype = size
    library.optiacts_caller.restype = address
    library.optiacts_excess.restype = ctypes.c_double


def _use_level(library: ctypes.CDLL, wanted: str, argument: str) -> None:
    if wanted not in LEVELS:
        raise ValueError(f"{argument} must be one of {', '.join(LEVELS)}; got {wanted!r}")
    if library.optiacts_use_level(LEVELS.index(wanted)):
        best = LEVELS[library.optiacts_best_level()]
        raise ValueError(f"{argument} must be at most {best} on this machine; got {wanted!r}")


def threads() -> int:
    """How many threads a kernel may use: torch's number, but one in a forked child, whose pool is not alive."""
    return 1 if _in_forked_child else torch.get_num_threads()


def best_level() -> str:
    """The best instruction set that this machine and this build have."""
    return LEVELS[library().optiacts_best_level()]


def level() -> str:
    """The instruction set in use."""
    return LEVELS[library().optiacts_level()]


def use_level(wanted: str) -> None:
    """Chooses the instruction set for this process; ``ValueError`` if it is unknown or this machine lacks it."""
    _use_level(library(), wanted, "level")
    replay.forget()  # which forwards are kernels hangs on it


def has_threads() -> bool:
    """Whether torch's OpenMP runtime was found, so that large tensors are shared out to threads."""
    return bool(library().optiacts_has_threads())


_in_forked_child = False


def _note_fork() -> None:
    """An OpenMP runtime believes its threads to be alive in the child, and would wait for them for ever."""
    global _in_forked_child
    _in_forked_child = True
    replay.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
