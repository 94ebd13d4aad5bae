"""Computes again what was computed before with tensors of the same form, without Python in between.

What an op of ours computes is a list of calls: of functions of PyTorch and of kernels. Which ones hangs on the
shapes, strides, dtypes and devices of its tensors, on its other arguments, on the number of threads and on autocast.
Once a form has come often, a call is recorded with a mode that sees every function of PyTorch, and from then on a
module in C (csrc/host/) makes these calls.

    compute = replayed(compute)    of a function of tensors, numbers, strings and dtypes, without side effects

What is recorded holds for tensors of the same form whatever their values, since a recording is refused where anything
but a form, an address or an answer of a kernel came out of a tensor. Addresses must reach kernels as they are; an
answer that changes (a weight that is bad by now) ends the replay, and the function is called. Each plan has to make
the same again at once, to the bit, in memory that was spoilt, before it serves.

Where that module was not built, functions are called as they are: see ``optiacts.host``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from optiacts import host
from optiacts._torch import (
    EXCHANGE,
    MATERIALIZES,
    NO_FORWARD_MODE,
    NOT_COMPILING,
    NOT_EXPORTING,
    SAVES,
    any_autocast,
    function_modes,
    is_capturing,
    mode_count,
    profiled,
    top_saved_tensors_hooks,
    trace_frames,
    transforms_active,
)
from optiacts.recording import Form, Recorder, recorder, recording

F = TypeVar("F", bound=Callable[..., Any])


def replayed(compute: F) -> F:
    """``compute``, replayed where it can be. It takes positional arguments only."""
    module = _module()
    if isinstance(module, str):
        return compute
    made: F = module.make(compute, functools.partial(_record, compute))
    return made


def function(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    watched: Callable[..., Any],
    remember: Callable[..., Any],
    any_gradient: bool,
    autocasts: bool,
) -> tuple[Any, Any, Any] | None:
    """The forward and the backward of a Function in C, and what makes its apply: see ops/plain.py; None without C."""
    module = _module()
    if isinstance(module, str):
        return None
    made: tuple[Any, Any, Any] = module.function(forward, backward, watched, remember, any_gradient, autocasts)
    return made


def quiet() -> bool | None:
    """Whether gradients are computed and nobody looks on, hooks on saved tensors and function modes included.

    None without C, where that takes several questions.
    """
    module = _module()
    return None if isinstance(module, str) else module.quiet()


def forget() -> None:
    """Forgets all plans: what was recorded may be computed in another way from now on."""
    module = _module()
    if not isinstance(module, str):
        module.forget()


def record_after(calls: int) -> int:
    """Has a form recorded after so many calls, 32 unless told: to record takes as long as a dozen calls.

    Gives the number from before; that is 0 without C.
    """
    module = _module()
    return 0 if isinstance(module, str) else int(module.record_after(calls))


def count() -> int:
    """How many calls were replayed so far in this process."""
    module = _module()
    return 0 if isinstance(module, str) else int(module.count())


@functools.cache
def _module() -> Any:
    """The module in C, or why there is none."""
    module = host.module()
    if not isinstance(module, str):
        module.use(_KNOWN)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=module.forked)
    return module


def _autocast() -> tuple[Any, ...]:
    """What autocast makes of operations, where it is on somewhere."""
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


_KNOWN: dict[str, Any] = {  # what csrc/host/ calls and knows of PyTorch: see torch.h there
    "tensor": Tensor,
    "parameter": torch.nn.Parameter,
    "comparable": (torch.dtype, Form),
    "exchange": EXCHANGE,
    "data_ptr": Tensor.data_ptr,
    "stride": Tensor.stride,
    "get_device": Tensor.get_device,
    "is_neg": Tensor.is_neg,
    "strided": torch.strided,
    "threads": torch.get_num_threads,
    "autocasts": any_autocast,
    "settings": _autocast,
    "grad_enabled": torch.is_grad_enabled,
    "trace_frames": trace_frames,
    "hooks": top_saved_tensors_hooks,
    "forward_quiet": (
        NOT_COMPILING,
        NOT_EXPORTING,
        NO_FORWARD_MODE,
        (mode_count, None, 0),
        (profiled, None, False),
        (transforms_active, None, False),
        (torch._C._get_tracing_state, None, None),
    ),
    "backward_quiet": (
        NOT_COMPILING,
        NO_FORWARD_MODE,
        (torch.is_grad_enabled, None, False),
        (mode_count, None, 0),
        (profiled, None, False),
    ),
    "modes_quiet": ((function_modes, None, 0),),
    "to_save": SAVES,
    "materialize_grads": MATERIALIZES,
    "dtypes": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
}


# Elements of a tensor. Larger ones keep a device busy meanwhile, and to prove a plan takes memory for a moment.
_LARGEST = 1 << 22


def _record(compute: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """What ``compute`` makes of the arguments, and a plan of it; False if there is none, None if there never is."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if recorder() is not None or any(is_capturing(tensor.device) for tensor in tensors):
        return compute(*arguments), False
    if any(tensor.numel() > _LARGEST for tensor in tensors):
        return compute(*arguments), None
    before = _random_states(tensors)
    mode = Recorder(arguments)
    with recording(mode):
        result = compute(*arguments)
    told = mode.plan(result)
    plan = None if told is None else _module().plan(*told)
    holds = _holds_and_draws if mode.draws else _holds
    return result, plan if plan is not None and holds(plan, arguments, result, before) else False


def _holds(plan: Any, arguments: Sequence[Any], result: Any, before: list[Tensor]) -> bool:
    """Whether a plan makes the same again, to the bit, and nobody has drawn random numbers since ``before``.

    Their state is not set: another thread may draw meanwhile, and would draw the same once more.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if not all(map(torch.equal, before, _random_states(tensors))):
        return False
    try:
        return _same(result, _module().check(plan, _spoil, *arguments))
    except Exception:  # too little memory, or something that the recorder could not see
        return False


def _holds_and_draws(plan: Any, arguments: Sequence[Any], result: Any, before: list[Tensor]) -> bool:
    """The same of a plan that draws random numbers: it draws the same again, and leaves them where they were."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    after = _random_states(tensors)
    try:
        _set_random_states(tensors, before)
        return _holds(plan, arguments, result, before) and all(map(torch.equal, after, _random_states(tensors)))
    finally:
        _set_random_states(tensors, after)


def _spoil(fresh: Tensor) -> None:
    """What a plan forgets to write is then found out."""
    if fresh.numel():
        fresh.as_strided((fresh.numel(),), (1,)).view(torch.uint8).fill_(0xA5)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        alike = isinstance(second, Tensor) and _form(first) == _form(second)
        return alike and torch.equal(_bytes(first), _bytes(second))
    if isinstance(first, (tuple, list)):
        alike = type(first) is type(second) and len(first) == len(second)
        return alike and all(map(_same, first, second))
    return type(first) is type(second) and bool(first == second)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _random_states(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The states of the generators on the CPU, and on the device of ``tensors``."""
    states = [torch.random.get_rng_state()]
    if tensors and tensors[0].is_cuda:
        states.append(torch.cuda.get_rng_state(tensors[0].device))
    return states


def _set_random_states(tensors: Sequence[Tensor], states: list[Tensor]) -> None:
    torch.random.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], tensors[0].device)
