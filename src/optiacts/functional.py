"""The activations as functions, with the arguments of their ``torch.nn.functional`` twins.

Each returns PyTorch's own result, bit for bit. When a gradient is to be computed it saves the output and
one bit per element (the side bit: is x left of the curve's minimum?) instead of the input:

    saved bytes = output (shared with a following layer that keeps its input) + ceil(n / 8) per row

without a gradient it *is* PyTorch's op, and tensors that we do not support (complex, integer, sparse,
nested, quantized, unknown subclasses) take PyTorch's path as well. Since the output is needed for
backward, changing it in place afterwards makes autograd raise an error.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from optiacts import curves
from optiacts._torch import PLAIN, TRACERS, autocasts, is_exporting, is_one_of_several_views
from optiacts.ops import activation as ops
from optiacts.ops import sharding

_DTYPES = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


def gelu(input: Tensor, approximate: str = "none", inplace: bool = False) -> Tensor:
    """GELU: x * Phi(x), or x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) with ``approximate="tanh"``.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        approximate: ``"none"`` or ``"tanh"``; PyTorch raises ``RuntimeError`` on anything else.
        inplace: write the result into the storage of ``input``. ``torch.nn.functional.gelu`` cannot,
            because it needs its input for backward.

    Returns:
        The tensor ``torch.nn.functional.gelu`` returns. Saved for backward: it, and one bit per element.
    """
    return activation(input, gelu_curve(input, approximate), inplace)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """SiLU (swish): x / (1 + exp(-x)).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        inplace: write the result into the storage of ``input``, while gradients are on as well.

    Returns:
        The tensor ``torch.nn.functional.silu`` returns. Saved for backward: it, and one bit per element.
    """
    return activation(input, "silu", inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """Mish: x * tanh(log(1 + exp(x))).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        inplace: write the result into the storage of ``input``, while gradients are on as well.

    Returns:
        The tensor ``torch.nn.functional.mish`` returns. Saved for backward: it, and one bit per element.
    """
    return activation(input, "mish", inplace)


def quick_gelu(input: Tensor, inplace: bool = False) -> Tensor:
    """QuickGELU, CLIP's: x * sigmoid(1.702 x), evaluated as ``input * torch.sigmoid(1.702 * input)`` is.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        inplace: write the result into the storage of ``input``, while gradients are on as well.

    Returns:
        The value of that expression. Saved for backward: it, and one bit per element.
    """
    return activation(input, "quick_gelu", inplace)


def activation(input: Tensor, name: str, inplace: bool = False) -> Tensor:
    """The activation called ``name``.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        name: that of any curve in ``optiacts.curves``: "gelu", "mish", ...
        inplace: write the result into the storage of ``input``, while gradients are on as well.

    Returns:
        The value that the curve's own forward has. Saved for backward: it, and at most one bit per element.

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
    """
    curve = curves.get(name)
    if not inplace and not torch.compiler.is_compiling():
        output = plain_activation(input, curve)
        if output is not None:
            return output
    unseen = inplace and not may_be_overwritten(input)
    kept = curve.keeps_output or (inplace and curve.inplace_keeps_output)
    if kept or unseen or not saves_memory(input) or compiles_autocast(curve, input):
        return curve.forward_(input) if inplace else curve.forward(input)
    return ops.activation_(input, curve.name) if inplace else ops.activation(input, curve.name)


def plain_activation(input: Tensor, curve: curves.Curve) -> Tensor | None:
    """The activation of a plain tensor while nobody looks on; None for any other, and where PyTorch keeps no more."""
    if curve.keeps_output or not isinstance(input, Tensor):
        return None
    output: Tensor | None = ops.plain_activation(input, curve.name)
    return output


def apply(name: str, input: Tensor, inplace: bool = False) -> Tensor:
    """``activation`` for converted forwards, which name the curve first."""
    return activation(input, name, inplace)


def gelu_curve(input: Tensor, approximate: str) -> str:
    """The name of GELU's curve; PyTorch's own ``RuntimeError`` if there is no such approximation."""
    if approximate not in ("none", "tanh"):
        functional.gelu(input, approximate=approximate)
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def may_be_overwritten(input: Tensor) -> bool:
    """Whether PyTorch allows changing ``input`` in place. If not, its own op says so before it overwrites it."""
    if torch.compiler.is_compiling():
        return True
    if input.is_leaf:
        return False
    return not input._is_view() or not is_one_of_several_views(input)


def compiles_autocast(curve: curves.Curve, input: Tensor) -> bool:
    """A variant compiled under autocast: autocast may widen steps of it, but does not reach into our op then."""
    return curve.base is not None and torch.compiler.is_compiling() and autocasts(input.device.type)


def saves_memory(input: Tensor) -> bool:
    """Whether a gradient is wanted, of a tensor that we support."""
    return (
        torch.is_grad_enabled()
        and isinstance(input, Tensor)
        and input.requires_grad
        and input.dtype in _DTYPES
        and input.layout is torch.strided
        and not is_exporting()  # an exported program keeps to PyTorch's own ops
        and torch._C._get_tracing_state() is None  # and so does a traced one
        and (type(input) in PLAIN or passes_our_ops(input))
    )


def passes_our_ops(input: Tensor) -> bool:
    """Plain tensors, fake ones (tracing, memory reports), and DTensors that can shard their bits."""
    kind = type(input)
    if kind in PLAIN:
        return True
    if sharding.is_dtensor_type(kind):
        return sharding.supports(input)
    return f"{kind.__module__}.{kind.__name__}" in TRACERS
