"""Norms that keep their output instead of their input, with the arguments of their ``torch.nn.functional`` twins.

The result is PyTorch's own, bit for bit. Where a gradient is wanted, saved are

    output mode:  y (shared with a following layer that keeps its input) + rstd, 4 bytes per row (float64: 8)
                  + the weight and the bias as they are now, 4 bytes per channel each (float64: 8)
                  + 2 bits per element of a bfloat16 or float16 output: see ``optiacts.norms.Norm.remainder``
                  + of each rescued channel its column of the input; with any, 4 more bytes per row (LayerNorm)
    input mode:   the input, in its own dtype, and 4 or 8 bytes per row

Output mode is left by itself where it would be wrong or of no use: with more than one bad channel in 64 (weights near
0, biases far above their weights), where the output is wider than the input, and under autocast, where whatever
follows keeps a copy of its own. Since the output is needed for backward, changing it in place afterwards makes
autograd raise an error. Without a gradient, under ``torch.func``, and with tensors that we do not support the call
*is* PyTorch's function. ``torch.compile`` takes output mode, with the weight and the bias saved in float32, or
PyTorch's function, where a channel is bad or output mode is of no use: see docs/norms.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from optiacts import backends, casts
from optiacts._torch import PLAIN, any_autocast, autocasts, forward_mode, is_exporting, transforms_active
from optiacts.functional import passes_our_ops
from optiacts.norms import Norm
from optiacts.ops import library, norm_plain, sharding
from optiacts.ops import norm as ops
from optiacts.ops.norm_compiled import compiled_norm
from optiacts.ops.norm_graphs import may_rely

_DTYPES = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    keep_output: bool = True,
) -> Tensor:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight over the last dimensions (arXiv 1910.07467).

    Args:
        input: a tensor that ends with the dimensions ``normalized_shape``; float64, float32, bfloat16 or float16 to
            save memory.
        normalized_shape: the dimensions that are normalised together; PyTorch's error if they do not fit.
        weight: of that shape, or None.
        eps: by default the eps of the dtype that the norm is computed in, as in PyTorch.
        keep_output: output mode; False keeps the input instead, where nobody else keeps the output.

    Returns:
        The tensor ``torch.nn.functional.rms_norm`` returns. Saved for backward: see the head of this module.
    """

    def forward(x: Tensor) -> Tensor:
        return functional.rms_norm(x, normalized_shape, weight, eps)

    due = torch.finfo(torch.float64 if input.dtype is torch.float64 else torch.float32).eps if eps is None else eps
    shape = tuple(normalized_shape)
    if not torch.compiler.is_compiling():
        found = plain_norm(input, weight, None, *_rms_norm(shape, eps, due), keep_output)
        if found is not None:
            return found
    kind = Norm(False, due, len(shape), remainder=True)
    if not saves_memory(input, weight) or not supports(input, weight, None, kind, keep_output):
        return forward(input)
    return norm(input, weight, None, kind, forward, keep_output)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    keep_output: bool = True,
) -> Tensor:
    """LayerNorm: (x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimensions (arXiv 1607.06450).

    Args:
        input: a tensor that ends with the dimensions ``normalized_shape``; float64, float32, bfloat16 or float16 to
            save memory.
        normalized_shape: the dimensions that are normalised together; PyTorch's error if they do not fit.
        weight, bias: of that shape, or None.
        eps: added to the variance.
        keep_output: output mode; False keeps the input instead, where nobody else keeps the output.

    Returns:
        The tensor ``torch.nn.functional.layer_norm`` returns. Saved for backward: see the head of this module.
    """

    compiling, shape = torch.compiler.is_compiling(), tuple(normalized_shape)
    if not compiling and (not keep_output or keeps_no_more(input)):
        return functional.layer_norm(input, shape, weight, bias, eps)  # which keeps the input
    if not compiling:
        found = plain_norm(input, weight, bias, *_layer_norm(shape, eps))
        if found is not None:
            return found
    kind = Norm(True, eps, len(shape), remainder=True)

    def forward(x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        return layer_norm_and_statistics(x, normalized_shape, weight, bias, eps)

    if not saves_memory(input, weight, bias) or not supports(input, weight, bias, kind, keep_output):
        return functional.layer_norm(input, normalized_shape, weight, bias, eps)
    return norm(input, weight, bias, kind, forward, keep_output)


def layer_norm_and_statistics(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """``torch.nn.functional.layer_norm``, with its mean and rstd where they come for nothing: a pass less over x."""
    if sharding.rows_of(x) or autocasts(x.device.type):
        return functional.layer_norm(x, normalized_shape, weight, bias, eps)
    weight, bias = _widened(x, weight, bias)
    return torch.native_layer_norm(x, normalized_shape, weight, bias, eps)  # the op that layer_norm calls


def _widened(x: Tensor, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """The parameters as the forward of x best takes them."""
    if not _computes_wide(x):
        return parameters
    return tuple(None if given is None else given.float() for given in parameters)


def _computes_wide(x: Tensor) -> bool:
    """Whether PyTorch computes with the parameters in float32 anyway, and tells exact statistics only of such."""
    return x.element_size() <= 2 and x.device.type == "cpu"


@dataclass(frozen=True)
class _RMSNorm(ops.FunctionForm):
    shape: tuple[int, ...]
    eps: float | None

    def of(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return functional.rms_norm(x, self.shape, weight, self.eps)


@dataclass(frozen=True)
class _LayerNorm(ops.FunctionForm):
    shape: tuple[int, ...]
    eps: float

    def of(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        plain = all(each is None or library.is_plain(each) for each in (x, weight, bias))
        if plain and x.is_cpu and not autocasts("cpu"):  # a kernel takes addresses, whatever they are of
            weight, bias = _widened(x, weight, bias)
            made: tuple[Tensor, Tensor, Tensor] = backends.select_layer_norm(x).layer_norm(
                x, self.shape, weight, bias, self.eps
            )
            return made
        return layer_norm_and_statistics(x, self.shape, weight, bias, self.eps)

    def widens(self, x: Tensor) -> bool:
        return len(self.shape) == 1 and _computes_wide(x) and not autocasts(x.device.type)


@functools.lru_cache(maxsize=1 << 12)
def _rms_norm(shape: tuple[int, ...], eps: float | None, due: float) -> tuple[Norm, _RMSNorm]:
    return Norm(False, due, len(shape), remainder=True), _RMSNorm(shape, eps)


def layer_norm_form(shape: tuple[int, ...], eps: float) -> ops.FunctionForm:
    """``torch.nn.functional.layer_norm`` of that shape, as a norm's forward."""
    return _layer_norm(shape, eps)[1]


@functools.lru_cache(maxsize=1 << 12)
def _layer_norm(shape: tuple[int, ...], eps: float) -> tuple[Norm, _LayerNorm]:
    return Norm(True, eps, len(shape), remainder=True), _LayerNorm(shape, eps)


def plain_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: Norm,
    forward: ops.Forward | ops.FunctionForm,
    keep_output: bool = True,
    share_cast: bool = False,
) -> Tensor | None:
    """``norm`` of plain tensors while nobody looks on; None for any other, and where a cast is to be shared."""
    if not isinstance(input, Tensor) or (share_cast and any_autocast() and autocasts(input.device.type)):
        return None
    made = norm_plain.plain_norm(input, weight, bias, kind, forward, keep_output and not keeps_no_more(input))
    return None if made is None else made[0]


def keeps_no_more(input: Any) -> bool:
    """Whether autocast has what follows a norm keep another tensor than its output, so that the input is as good."""
    if not any_autocast() or not isinstance(input, Tensor):
        return False
    return input.dtype is torch.float32 and autocasts(input.device.type)


def norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: Norm,
    forward: ops.Forward,
    keep_output: bool = True,
    share_cast: bool = False,
) -> Tensor:
    """``forward(input)``, which must be the norm ``kind`` of it, kept for backward as this module's head says.

    It may return its mean and rstd as well: see ``optiacts.ops.norm.Forward``.

    Only for tensors of which ``saves_memory`` and ``supports`` hold. ``share_cast``: under autocast keep the output
    in autocast's dtype, in the copy that ``optiacts.casts.shared`` hands to what follows. It is rounded once.
    """
    if torch.compiler.is_compiling():
        return compiled_norm(input, weight, bias, kind, forward)
    found = plain_norm(input, weight, bias, kind, forward, keep_output, share_cast)
    if found is not None:
        return found
    sharing = keep_output and share_cast and _single(weight, bias) and sharding.rows_of(input) is None
    cast = casts.autocast_dtype(input) if sharing else None
    if cast is not None:
        return ops.norm(input, weight, bias, dataclasses.replace(kind, remainder=True), forward, True, cast)
    return ops.norm(input, weight, bias, kind, forward, keep_output and not keeps_no_more(input))


def supports(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: Norm,
    keep_output: bool = True,
) -> bool:
    """Whether ``norm`` may be called: of DTensors, where the rows are whole on each rank.

    Where a compiler traces, in output mode alone and of plain tensors: PyTorch's path holds what input mode would.
    """
    if torch.compiler.is_compiling():
        return (
            keep_output
            and not sharding.is_dtensor_type(type(input))
            and not autocasts(input.device.type)
            and all(parameter is None or parameter.dtype is input.dtype for parameter in (weight, bias))
            and may_rely(kind, weight, bias, input.dtype)
        )
    if not any(sharding.is_dtensor_type(type(tensor)) for tensor in (input, weight, bias)):
        return True
    channels = {1} if kind.channels_first else set(range(input.ndim - kind.dims, input.ndim))
    return sharding.supports_norm(channels, input, weight, bias)


def saves_memory(input: Tensor, *parameters: Tensor | None) -> bool:
    """Whether a gradient is wanted, of tensors that we support."""
    if not torch.is_grad_enabled() or not isinstance(input, Tensor) or not _plain(input):
        return False
    wanted = input.requires_grad
    for parameter in parameters:
        if parameter is not None:
            if not _plain(parameter) or parameter.device != input.device:
                return False
            wanted = wanted or parameter.requires_grad
    return (
        wanted
        and (torch.compiler.is_compiling() or not transforms_active())
        and not forward_mode()
        and not is_exporting()
        and torch._C._get_tracing_state() is None
    )


def _single(*parameters: Tensor | None) -> bool:
    return all(parameter is None or parameter.dtype is torch.float32 for parameter in parameters)


def _plain(tensor: Tensor) -> bool:
    return (
        tensor.dtype in _DTYPES
        and tensor.layout is torch.strided
        and (type(tensor) in PLAIN or sharding.is_dtensor_type(type(tensor)) or passes_our_ops(tensor))
    )
