"""A norm and the activation after it as one step, which keeps the activation's output alone.

The result is PyTorch's own, bit for bit: the norm runs its own forward (running statistics, counters and all), and
the activation is PyTorch's op. PyTorch keeps three tensors for ``conv(act(norm(x)))``: x for the norm, its output for
the activation, and the activation's output for what follows. Here are saved

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

import contextlib
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from optiacts import curves
from optiacts import functional as activations
from optiacts._torch import (
    saved_tensors_hooks,
    statistics_of,
    watched,
)
from optiacts.chains import Chain, why_not_chained
from optiacts.functional_norm import saves_memory
from optiacts.norms import arithmetic
from optiacts.ops import chain as ops
from optiacts.ops import sharding
from optiacts.ops.chain_compiled import compiled_chain
from optiacts.ops.norm_channels import look
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
    name = checked(norm, activation)
    return chained(input, norm, name)


def checked(norm: Module, activation: str) -> str:
    """The canonical name of ``activation``; raises as ``norm_activation`` does."""
    curve = curves.get(activation)
    reason = why_not_chained(curve.name)
    if reason:
        raise ValueError(f"activation: {reason}; call the norm and optiacts.activation apart")
    if norm_name(norm) is None:
        raise TypeError(f"norm must be {NORMS} of torch.nn; got {type(norm).__name__}{why_no_norm(norm)}")
    return curve.name


NORMS = "a BatchNorm, GroupNorm, InstanceNorm, LayerNorm or RMSNorm"
_FORWARDS: dict[Any, str] = {
    nn.modules.batchnorm._BatchNorm.forward: "BatchNorm",
    nn.modules.instancenorm._InstanceNorm.forward: "InstanceNorm",
    nn.GroupNorm.forward: "GroupNorm",
    nn.LayerNorm.forward: "LayerNorm",
    nn.RMSNorm.forward: "RMSNorm",
}


def norm_name(norm: Module) -> str | None:
    """Which of torch.nn's norms a module runs; None for any other module."""
    forward = getattr(_own_class(norm), "forward", None)  # TorchScript has none
    return _FORWARDS.get(forward) if isinstance(forward, types.FunctionType) else None


def _own_class(norm: Module) -> type[Module]:
    """The class with the norm's own forward: before a conversion, and without ours."""
    kind: type[Module] = getattr(type(norm), "optiacts_original", type(norm))
    return next(k for k in kind.__mro__ if k.__module__ != "optiacts.nn_norm")


def why_no_norm(norm: Module) -> str:
    """What to add for a norm that is left alone."""
    if isinstance(norm, nn.SyncBatchNorm):
        return ", whose statistics are those of several devices"
    return ""


def chained(input: Tensor, norm: Module, name: str) -> Tensor:
    """The chain of ``norm`` and the curve ``name``, or the two of them apart where it cannot be one."""
    result = chained_or_none(input, norm, name)
    return activations.activation(norm(input), name) if result is None else result


def chained_or_none(input: Tensor, norm: Module, name: str) -> Tensor | None:
    """The chain of ``norm`` and the curve ``name``; None, with nothing run, where it cannot be one."""
    parameters = norm._parameters.get("weight"), norm._parameters.get("bias")
    if watched(norm) or not supports(input, *parameters):
        return None
    kind = kind_of(norm, name, input)
    if kind is None:
        return None
    forward = _own_class(norm).forward

    def run(x: Tensor) -> Tensor:
        z: Tensor = forward(norm, x)
        return z

    return chain(input, *parameters, kind, run, _given(norm, kind))


def kind_of(norm: Module, name: str, x: Tensor) -> Chain | None:
    """What ``norm`` computes of ``x`` now, with the curve ``name`` after it; None if that is not for a chain."""
    what = norm_name(norm)
    options: dict[str, Any]
    module: Any = norm
    if what in ("BatchNorm", "InstanceNorm"):
        running = module.running_mean is not None and module.running_var is not None
        over = "batch" if what == "BatchNorm" else "rows"
        if what == "BatchNorm":
            given = not module.training and running
        else:
            given = not module.training and module.track_running_stats
            if x.ndim != module._get_no_batch_dim() + 1:
                return None
        if (given and not running) or x.ndim < 2:
            return None
        groups = module.num_features if what == "InstanceNorm" and not given else 1
        options = {"statistics": "given" if given else over, "groups": groups}
        channels = x.shape[1] == module.num_features
    elif what == "GroupNorm":
        options = {"statistics": "rows", "groups": module.num_groups}
        channels = x.ndim >= 2 and x.shape[1] == module.num_channels
    elif what in ("LayerNorm", "RMSNorm"):
        dims = len(module.normalized_shape)
        options = {"statistics": "rows", "dims": dims, "centered": what == "LayerNorm"}
        channels = x.ndim >= dims and tuple(x.shape[x.ndim - dims :]) == tuple(module.normalized_shape)
    else:
        return None
    eps = torch.finfo(arithmetic(x.dtype)).eps if module.eps is None else module.eps
    return Chain(what, name, eps=eps, **options) if channels and x.numel() else None


Statistics = tuple[Tensor, Tensor]


def _given(norm: Module, kind: Chain) -> Statistics | None:
    """Copies of the running mean and of rstd, where the norm goes by them: they change later."""
    if kind.statistics != "given":
        return None
    module: Any = norm
    wide = arithmetic(module.running_var.dtype)
    with torch.no_grad():
        return module.running_mean.to(wide, copy=True), (module.running_var.to(wide) + kind.eps).rsqrt()


def chain(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: Chain,
    forward: Callable[[Tensor], Tensor],
    given: Statistics | None = None,
) -> Tensor | None:
    """The chain of tensors of which ``supports`` holds; None, with nothing run, if the weights forbid it.

    ``forward`` computes the norm ``kind``; ``given`` are its statistics where they are given.
    """
    if torch.compiler.is_compiling():
        if torch.is_autocast_enabled(input.device.type) or not may_rely(kind, weight, bias, input.dtype):
            return None
        return compiled_chain(input, weight, bias, kind, _run(input, kind, forward, given))
    factors = ops.factors(weight, bias, kind)
    channels = look(kind, *factors, input.dtype)
    if not channels.keep_output:
        return None
    return ops.chain(input, factors, kind, _run(input, kind, forward, given), channels)


def _run(x: Tensor, kind: Chain, forward: Callable[[Tensor], Tensor], given: Statistics | None) -> ops.Normed:
    """The norm's own forward, and the statistics that it went by.

    They stand in the graph that PyTorch records, which is thrown away then.
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            z = forward(x.detach())
        return ops.Normed(z, *(given or (None, None)))
    nobody = torch.autograd.graph.saved_tensors_hooks(_itself, _itself)
    with torch.enable_grad(), nobody if saved_tensors_hooks() is not None else contextlib.nullcontext():
        z = forward(x.detach().requires_grad_())
        known = given if kind.statistics == "given" else statistics_of(z)
    z = z.detach()
    if known is None or known[1].dtype is not arithmetic(x.dtype):
        return ops.Normed(z, None, None)
    shape = (-1,) if kind.statistics != "rows" else (z.shape[0] if not kind.dims else -1, kind.groups)
    return ops.Normed(z, known[0].detach().reshape(shape), known[1].detach().reshape(shape))


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def supports(input: Tensor, *parameters: Tensor | None) -> bool:
    """Whether a gradient is wanted, of tensors that chains support: all that norms do but DTensors."""
    sharded = any(sharding.is_dtensor_type(type(tensor)) for tensor in (input, *parameters))
    return not sharded and saves_memory(input, *parameters)
