"""Which norm a call computes: of a norm module, of such a module's own forward, or of PyTorch's function.

A module that calls ``F.batch_norm`` itself, with its own arithmetic of running statistics, is as good as a BatchNorm:
the call tells all that a chain needs to know.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F

from optiacts._torch import without_grad
from optiacts.chains import Chain
from optiacts.norms import arithmetic

NORMS = "a BatchNorm, GroupNorm, InstanceNorm, LayerNorm or RMSNorm"
_FORWARDS: dict[Any, str] = {
    nn.modules.batchnorm._BatchNorm.forward: "BatchNorm",
    nn.modules.instancenorm._InstanceNorm.forward: "InstanceNorm",
    nn.GroupNorm.forward: "GroupNorm",
    nn.LayerNorm.forward: "LayerNorm",
    nn.RMSNorm.forward: "RMSNorm",
}
_CALLED = {  # the functions that their forwards call
    "BatchNorm": "batch_norm",
    "InstanceNorm": "instance_norm",
    "GroupNorm": "group_norm",
    "LayerNorm": "layer_norm",
    "RMSNorm": "rms_norm",
}
_FUNCTIONS: dict[Any, str] = {getattr(F, function): name for name, function in _CALLED.items()}
# the functions' parameters after the input; those without a default must be given
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "BatchNorm": ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "InstanceNorm": ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "GroupNorm": ("num_groups", "weight", "bias", "eps"),
    "LayerNorm": ("normalized_shape", "weight", "bias", "eps"),
    "RMSNorm": ("normalized_shape", "weight", "eps"),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "BatchNorm": {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5},
    "InstanceNorm": {
        "running_mean": None, "running_var": None, "weight": None, "bias": None, "use_input_stats": True,
        "momentum": 0.1, "eps": 1e-5,
    },
    "GroupNorm": {"weight": None, "bias": None, "eps": 1e-5},
    "LayerNorm": {"weight": None, "bias": None, "eps": 1e-5},
    "RMSNorm": {"weight": None, "eps": None},
}  # fmt: skip

Statistics = tuple[Tensor, Tensor]


class NormCall(NamedTuple):
    """A call of a norm, with an activation after it.

    Args:
        kind: what it computes.
        weight, bias: as they are given.
        forward: the call, of whatever input.
        given: copies of the running mean and of rstd, where the norm goes by them: they change later.
        told: the call as well, with the statistics of the batch; None where they cannot be had so.
    """

    kind: Chain
    weight: Tensor | None
    bias: Tensor | None
    forward: Callable[[Tensor], Tensor]
    given: Statistics | None
    told: BatchNormed | None = None


def norm_name(callee: Any) -> str | None:
    """Which norm of PyTorch's a module, a module's own forward or a function computes; None for anything else."""
    if isinstance(callee, Module):
        return norm_name_of(type(callee))
    if isinstance(callee, types.MethodType):
        return _FORWARDS.get(callee.__func__) if isinstance(callee.__self__, Module) else None
    return _FUNCTIONS.get(callee) if isinstance(callee, types.FunctionType) else None


def norm_name_of(kind: type[Module]) -> str | None:
    """Which norm of PyTorch's the modules of a class compute; None for anything else."""
    return _FORWARDS.get(_own_forward(kind))


def _own_forward(of: type[Module]) -> Any:
    """The forward of norms of a class, as it was before a conversion, and without ours. None if it is no function."""
    kind: Any = getattr(of, "optiacts_original", of)
    if kind.__module__ == "optiacts.nn_norm":
        kind = next(k for k in kind.__mro__ if k.__module__ != "optiacts.nn_norm")
    forward = getattr(kind, "forward", None)  # TorchScript has none
    return forward if isinstance(forward, types.FunctionType) else None


def why_no_norm(norm: Module) -> str:
    """What to add for a norm that is left alone."""
    if isinstance(norm, nn.SyncBatchNorm):
        return ", whose statistics are those of several devices"
    return ""


def norm_call(callee: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], curve: str) -> NormCall | None:
    """What ``callee(x, *args, **kwargs)`` computes now, with ``curve`` after it; None if that is not for a chain."""
    own = _own_forward(type(callee)) if isinstance(callee, Module) else None
    name = norm_name(callee) if own is None else _FORWARDS.get(own)
    if name is None:
        return None
    if getattr(F, _CALLED[name]) not in _FUNCTIONS:
        return None  # somebody has replaced it, perhaps by what is no such norm
    if isinstance(callee, types.FunctionType):
        options = _named(name, args, kwargs)
    elif args or kwargs:
        return None
    else:
        options = _of_module(name, callee.__self__ if own is None else callee, x)
    if options is None:
        return None
    kind = _kind(name, curve, x, options)
    if kind is None:
        return None

    def run(x: Tensor) -> Tensor:
        z: Tensor = callee(x, *args, **kwargs) if own is None else own(callee, x)
        return z

    told = None
    compiling = torch.compiler.is_compiling()  # which makes one graph of the module's own forward
    if not compiling and own is _BATCH_NORM and kind.statistics == "batch" and kind.eps > 0:
        mean, variance = options["running_mean"], options["running_var"]
        plain = _is_plain_statistic(mean, x.shape[1]) and _is_plain_statistic(variance, x.shape[1])
        if plain or (mean is None and variance is None):
            told = BatchNormed(callee)
    return NormCall(kind, options["weight"], options.get("bias"), run, _given(kind, options), told)


_BATCH_NORM = nn.modules.batchnorm._BatchNorm.forward


def _is_plain_statistic(running: Any, channels: int) -> bool:
    """Whether a running mean or variance is what PyTorch's function would not refuse: the op does not look."""
    return type(running) is Tensor and running.shape == (channels,) and not running.requires_grad


class BatchNormed(NamedTuple):
    """A BatchNorm in training by the op that its function calls, which tells statistics and leaves no graph."""

    norm: Any

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the module's own forward does; its output, mean and rstd."""
        norm = self.norm
        norm._check_input_dim(x)
        factor, running = norm.momentum, self._running()
        if norm.training and norm.track_running_stats:
            batches = _buffer(norm, "num_batches_tracked")
            if batches is not None:
                batches.add_(1)
                factor = 1.0 / float(batches) if factor is None else factor
        if x.numel() == x.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        found: tuple[Tensor, Tensor, Tensor] = without_grad(
            torch.native_batch_norm, x, *self._parameters(), *running, True, factor or 0.0, norm.eps
        )
        return found

    def again(self, x: Tensor) -> Tensor:
        """The same output once more, with a graph; nothing changes."""
        mean, variance = (None if tensor is None else tensor.clone() for tensor in self._running())
        weight, bias = self._parameters()
        return F.batch_norm(x, mean, variance, weight, bias, True, 0.0, self.norm.eps)

    def _running(self) -> tuple[Tensor | None, Tensor | None]:
        norm = self.norm
        if norm.training and not norm.track_running_stats:
            return None, None
        return _buffer(norm, "running_mean"), _buffer(norm, "running_var")

    def _parameters(self) -> tuple[Tensor | None, Tensor | None]:
        kept = self.norm._parameters
        return kept.get("weight"), kept.get("bias")


def _named(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call of a function by their names; None if it does not take them."""
    names = _PARAMETERS[name]
    if len(args) > len(names):
        return None
    options = dict(_DEFAULTS[name])
    for number, value in enumerate(args):
        if names[number] in kwargs:
            return None
        options[names[number]] = value
    for key, value in kwargs.items():
        if key not in names:
            return None
        options[key] = value
    return options if all(key in options for key in names) else None


def _of_module(name: str, module: Any, x: Tensor) -> dict[str, Any] | None:
    """The arguments with which a norm module calls the function; None if its parameters are not simply kept.

    Those that ``torch.nn.utils.parametrize`` makes are computed anew for whoever asks for them.
    """
    kept = module._parameters  # where ``Module.__getattr__`` finds them, in less time
    options: dict[str, Any] = {"eps": module.eps}
    for parameter in ("weight", "bias"):
        if parameter not in kept and (parameter in module.__dict__ or hasattr(type(module), parameter)):
            return None
        options[parameter] = kept.get(parameter)
    if name == "GroupNorm":
        options["num_groups"] = module.num_groups
        return options if x.ndim >= 2 and x.shape[1] == module.num_channels else None
    if name in ("LayerNorm", "RMSNorm"):
        options["normalized_shape"] = module.normalized_shape
        return options
    for running in ("running_mean", "running_var"):
        options[running] = _buffer(module, running)
    if name == "BatchNorm":
        known = options["running_mean"] is not None and options["running_var"] is not None
        options["training"] = module.training or not known
    else:
        if x.ndim != module._get_no_batch_dim() + 1:
            return None
        options["use_input_stats"] = module.training or not module.track_running_stats
    return options if x.ndim >= 2 and x.shape[1] == module.num_features else None


def _buffer(module: Any, name: str) -> Any:
    """An attribute, which is most likely a buffer."""
    kept = module._buffers
    return kept[name] if name in kept else getattr(module, name)


def _kind(name: str, curve: str, x: Tensor, options: dict[str, Any]) -> Chain | None:
    """What a norm with these arguments computes of x; None if PyTorch would refuse them, or we cannot tell."""
    eps, shape = options["eps"], x.shape
    if eps is None:
        eps = torch.finfo(arithmetic(x.dtype)).eps
    if not isinstance(eps, (int, float)) or not x.numel():
        return None
    statistics, dims, groups = "rows", 0, 1
    if name in ("LayerNorm", "RMSNorm"):
        channels = options["normalized_shape"]
        if not isinstance(channels, (tuple, list)) or not channels:
            return None
        channels, dims = tuple(channels), len(channels)
        if x.ndim == dims or tuple(shape[x.ndim - dims :]) != channels:
            return None
    else:
        if x.ndim < 2:
            return None
        channels = (shape[1],)
        if name == "GroupNorm":
            groups = options["num_groups"]
            if not isinstance(groups, int) or groups < 1 or shape[1] % groups:
                return None
        else:
            takes = options["training" if name == "BatchNorm" else "use_input_stats"]
            running = options["running_mean"], options["running_var"]
            if not isinstance(takes, bool) or (not takes and not all(_shaped(r, channels) for r in running)):
                return None
            statistics = "given" if not takes else "batch" if name == "BatchNorm" else "rows"
            groups = shape[1] if takes and name == "InstanceNorm" else 1
    for parameter in (options["weight"], options.get("bias")):
        if parameter is not None and not _shaped(parameter, channels):
            return None
    made = Chain if torch.compiler.is_compiling() else _chain
    return made(name, curve, statistics, eps, dims, groups, name != "RMSNorm")


_chain = functools.lru_cache(maxsize=1 << 12)(Chain)  # for eager calls, of which many are alike


def _shaped(tensor: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(tensor, Tensor) and tensor.shape == shape


def _given(kind: Chain, options: dict[str, Any]) -> Statistics | None:
    if kind.statistics != "given":
        return None
    mean, variance = options["running_mean"], options["running_var"]
    wide = arithmetic(variance.dtype)
    with torch.no_grad():
        return mean.to(wide, copy=True), (variance.to(wide) + kind.eps).rsqrt()
