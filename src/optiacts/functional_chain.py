"""A norm and the activation after it as one step, which keeps the activation's output alone.

The result is PyTorch's own, bit for bit: the norm runs its own forward (running statistics, counters and all; of up
to 4 MiB on a CPU the op behind it, which takes fewer steps of Python), and the activation is PyTorch's op. PyTorch
keeps three tensors for ``conv(act(norm(x)))``: x for the norm, its output for the activation, and the activation's
output for what follows. Here are saved

    output (shared with a following layer that keeps its input) + ceil(n / 8) bytes per row of side bits
    + rstd, 4 bytes (float64: 8) for each thing that is normalised together; the weight and the bias as they are now
    + of each rescued channel its input; with any, the mean as well

A *rescued* channel has a weight or bias that would spoil x̂ = (z - bias) / weight: |weight| near 0, |bias| above 4
times |weight| (2 times in 16 bits), or so large a weight that outputs far left vanish. With more than one in 8 of
them, under ``torch.func`` transforms and in forward mode, with hooks on the norm, and for tensors that we do not
support, norm and activation go their own ways: the norm keeps its input, the activation its output. Without a
gradient the calls are PyTorch's.

Since the output is needed for backward, changing it in place afterwards makes autograd raise an error. Second
derivatives raise ``NotImplementedError``; where they are needed, call the norm and the activation apart.

Activations whose output does not tell their input everywhere, GELU and hardswish among them, are refused: see
docs/chains.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from optiacts import curves
from optiacts import functional as activations
from optiacts._torch import (
    PLAIN,
    any_autocast,
    autocasts,
    known_to_compilers,
    saved_tensors_hooks,
    statistics_of,
    watched,
)
from optiacts.chains import Chain, loses_inputs, why_not_chained, why_not_converted
from optiacts.functional_norm import saves_memory
from optiacts.norm_calls import NORMS, NormCall, Statistics, norm_call, norm_name, why_no_norm
from optiacts.norms import arithmetic
from optiacts.ops import chain as ops
from optiacts.ops import library, norm_channels, sharding
from optiacts.ops.chain_compiled import compiled_chain
from optiacts.ops.norm_graphs import may_rely


def norm_activation(input: Tensor, norm: Module, activation: str) -> Tensor:
    """``activation(norm(input))`` as one step.

    Args:
        input: what ``norm`` takes; float64, float32, bfloat16 or float16 to save memory.
        norm: a ``torch.nn`` BatchNorm, GroupNorm, InstanceNorm, LayerNorm or RMSNorm, of any dimension, or a subclass
            with its forward.
        activation: the name of a curve that tells its input: "silu", "mish", "leaky_relu", "elu(alpha=0.5)", "celu".

    Returns:
        The value of the two steps, with all side effects of the norm. Saved for backward: see this module's head.

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
        ValueError: the output of the activation does not tell its input.
        TypeError: ``norm`` is none of these; a ``SyncBatchNorm``, whose statistics lie on several devices.
    """
    curve = curves.get(activation)
    result = chained_or_none(norm, input, (), {}, curve.name) if curve.tells_input else None
    if result is not None:
        return result
    name = checked(norm, activation)  # before anything is run
    return activations.activation(norm(input), name)


def checked(norm: Module, activation: str) -> str:
    """The canonical name of ``activation``; raises as ``norm_activation`` does."""
    curve = curves.get(activation)
    reason = why_not_chained(curve.name)
    if reason:
        raise ValueError(f"activation: {reason}; call the norm and optiacts.activation apart")
    if norm_name(norm) is None:
        raise TypeError(f"norm must be {NORMS} of torch.nn; got {type(norm).__name__}{why_no_norm(norm)}")
    return curve.name


def chained(input: Tensor, norm: Module, name: str) -> Tensor:
    """The chain of ``norm`` and the curve ``name``, or the two of them apart where it cannot be one."""
    result = chained_or_none(norm, input, (), {}, name)
    return activations.activation(norm(input), name) if result is None else result


def chained_or_none(
    norm: Any,
    input: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    wanted: bool = True,
    small: bool | None = None,
) -> Tensor | None:
    """The chain of ``norm(input, *args, **kwargs)`` and the curve ``name``, as one step.

    ``norm`` is what ``norm_calls.norm_call`` knows. None, with nothing run, where it cannot be one step, or, if
    nobody has asked for it (``wanted``), where conversion leaves the two apart. ``small``: what ``is_small`` says,
    if it was asked already.
    """
    if not isinstance(input, Tensor) or (isinstance(norm, Module) and watched(norm)):
        return None
    call = norm_call(norm, input, args, kwargs, name)
    if call is None or not (wanted or not _left_apart(call.kind, input)):
        return None
    if is_small(input) if small is None else small:
        return _small_chain(input, call)
    kind, weight, bias, forward, given, _ = call
    return chain(input, kind, weight, bias, forward, given) if supports(input, weight, bias) else None


def is_small(x: Any) -> bool:
    """Whether a chain of ``x`` is best computed without more questions, while nobody looks on."""
    plain = type(x) in PLAIN and x.requires_grad and x.numel() * x.itemsize <= ops.SMALL
    return plain and not norm_channels.waits(x.device) and library.is_quiet(x)


def _small_chain(x: Tensor, call: NormCall) -> Tensor | None:
    """The chain of a small tensor; None where it cannot be one, and the norm may as well be run again.

    Else it has been run, since nobody asked before, and the two of them go their own ways here.
    """
    kind, weight, bias, forward, given, told = call
    if not any_autocast() and ops.tells_all(kind, x):
        result = ops.small_chain(x, weight, bias, kind, None, None)
        if result is not None:
            return result
    if told is not None:
        z, mean, rstd = told.forward(x)
        known: Statistics | None = (mean, rstd)
    else:
        normed = forward(x)
        z, known = normed.detach(), statistics_of(normed, x) if given is None else given
    result = ops.small_chain(x, weight, bias, kind, z, None if known is None else known[1])
    if result is not None:
        return result
    if supports(x, weight, bias):
        factors = ops.factors(weight, bias, kind)
        channels = norm_channels.look(kind, *factors, x.dtype)
        if channels.keep_output:
            return ops.chain(x, factors, kind, _normed(x, z, kind, known), channels)
    if kind.norm not in ("BatchNorm", "InstanceNorm"):
        return None
    return activations.activation(normed if told is None else told.again(x), kind.curve)


def _left_apart(kind: Chain, x: Tensor) -> bool:
    """Whether conversion leaves a norm and its activation apart, be they one step where they are called so.

    In 16 bits ELU and CELU lose inputs that are common. A host that does not wait cannot keep what was lost.
    """
    return _is_left_apart(kind.norm, kind.curve, x.dtype, norm_channels.waits(x.device))


@known_to_compilers
def _is_left_apart(norm: str, curve: str, dtype: torch.dtype, waits: bool) -> bool:
    return _leaves_apart(norm, curve, dtype, waits)


@functools.lru_cache(maxsize=1 << 12)
def _leaves_apart(norm: str, curve: str, dtype: torch.dtype, waits: bool) -> bool:
    closed = isinstance(curves.get(curve).decoder, curves.ClosedForm)
    if waits and closed and dtype in (torch.bfloat16, torch.float16) and loses_inputs(curve, dtype):
        return True
    return bool(why_not_converted(norm, curve, dtype))


@known_to_compilers
def _loses_inputs(curve: str, dtype: torch.dtype) -> bool:
    return loses_inputs(curve, dtype)


def chain(
    input: Tensor,
    kind: Chain,
    weight: Tensor | None,
    bias: Tensor | None,
    forward: Callable[[Tensor], Tensor],
    given: Statistics | None = None,
) -> Tensor | None:
    """The chain of tensors of which ``supports`` holds; None, with nothing run, if the weights forbid it.

    ``forward`` computes the norm ``kind``; ``given`` are its statistics where they are given.
    """
    if torch.compiler.is_compiling():
        if autocasts(input.device.type) or _loses_inputs(kind.curve, input.dtype):
            return None
        if not may_rely(kind, weight, bias, input.dtype):
            return None
        with torch.no_grad():
            normed = ops.Normed(forward(input.detach()), *(given or (None, None)))
        return compiled_chain(input, weight, bias, kind, normed)
    factors = ops.factors(weight, bias, kind)
    channels = norm_channels.look(kind, *factors, input.dtype)
    if not channels.keep_output:
        return None
    return ops.chain(input, factors, kind, _run(input, kind, forward, given), channels)


def _run(x: Tensor, kind: Chain, forward: Callable[[Tensor], Tensor], given: Statistics | None) -> ops.Normed:
    """The norm's own forward, and the statistics that it went by.

    They stand in the graph that PyTorch records, which is thrown away then.
    """
    alone = x.detach().requires_grad_()
    if saved_tensors_hooks() is None:
        z = forward(alone)
        known = statistics_of(z, alone) if given is None else given
    else:
        with _nobody():
            z = forward(alone)
            known = statistics_of(z, alone) if given is None else given
    return _normed(x, z.detach(), kind, known)


def _normed(x: Tensor, z: Tensor, kind: Chain, known: Statistics | None) -> ops.Normed:
    """The norm's output with the statistics that are known, in the shapes that chains have them in."""
    if known is None or known[1].dtype is not arithmetic(x.dtype):
        return ops.Normed(z, None, None)
    mean, rstd = known[0].detach(), known[1].detach()
    return ops.Normed(z, kind.shaped(mean, x), kind.shaped(rstd, x))


def _nobody() -> torch.autograd.graph.saved_tensors_hooks:
    """Puts the hooks of others aside. Detached: a node that keeps a result of its own as it is keeps itself."""
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _itself)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def supports(input: Tensor, *parameters: Tensor | None) -> bool:
    """Whether a gradient is wanted, of tensors that chains support: all that norms do but DTensors."""
    for tensor in (input, *parameters):
        if type(tensor) not in PLAIN and sharding.is_dtensor_type(type(tensor)):
            return False
    return saves_memory(input, *parameters)
