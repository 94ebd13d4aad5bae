"""Dropout that keeps one bit per element, and dropout of an activation or of a gated product that keeps none.

Each returns PyTorch's own result, bit for bit, and draws as PyTorch does: the same seed gives the same numbers, on
CPU and on CUDA, and leaves the generator in the same state. PyTorch keeps, for every element, a bool on CUDA and a
number of the input's dtype on CPU, and behind an activation also its input, since what the next layer keeps is the
dropout's output. Here are saved

    dropout               ceil(n / 8) bytes per row
    activation_dropout    output (shared with a following layer that keeps its input) + ceil(n / 8) per row;
                          for ReLU the output alone
    gated_dropout         output (shared) + slot (as large) + 2 * ceil(n / 8) per row, as without the dropout

A dropped element is told from the output: it is 0, with the side bit set as if it lay infinitely far left. An input
that is 0, such as padding, is told apart by its bit.

The calls are PyTorch's own ops without a gradient, in evaluation, with p = 0 or 1, under ``torch.func`` transforms,
in forward mode, for DTensors, for tensors that we do not support, and where 1 / (1 - p) overflows. An activation or
product in front then keeps its output by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from optiacts import curves
from optiacts import functional as activations
from optiacts import functional_gated as products
from optiacts._torch import forward_mode, known_to_compilers, transforms_active
from optiacts.ops import dropout as ops
from optiacts.ops import sharding

_USUAL = 0.99  # up to here 1 / (1 - p) does not overflow, be it float16


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout: elements are 0 with probability ``p``, the others multiplied by 1 / (1 - p).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        p: the probability of an element to be dropped.
        training: without it the result is ``input``.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.dropout`` returns. Saved for backward: one bit per element.

    Raises:
        ValueError: ``p`` is not between 0 and 1.
    """
    if _is_usual(input, p, training, inplace):
        found: Tensor | None = ops.plain_dropout(input, p)
        if found is not None:
            return found
    if not drops(input, p, training) or (inplace and not activations.may_be_overwritten(input)):
        return functional.dropout(input, p, training, inplace)
    return ops.dropout(input, p, inplace)


def activation_dropout(
    input: Tensor, name: str, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """The dropout of an activation: ``dropout(act(input), p, training)`` as one step.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        name: the activation, any curve in ``optiacts.curves.GATES``: "gelu", "mish", "relu", ...
        p: the probability of an element to be dropped.
        training: without it the result is the activation's.
        inplace: draw as ``torch.nn.functional.dropout`` does with this; on CUDA that gives other numbers. ``input``
            stays as it is.

    Returns:
        The value of the two steps. Saved for backward: it, and at most one bit per element.

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
        ValueError: ``p`` is not between 0 and 1.
    """
    curve = curves.get(name)
    if _is_usual(input, p, training, inplace) and curve.survives_dropout:
        found = ops.plain_activation_dropout(input, curve.name, p)
        if found is not None:
            return found
    if not drops(input, p, training) or not survives_dropout(curve.name):
        return dropout(activations.activation(input, curve.name), p, training, inplace)
    if activations.compiles_autocast(curve, input):
        return dropout(curve.forward(input), p, training, inplace)
    return ops.activation_dropout(input, curve.name, p, inplace)


def gated_dropout(
    gate: Tensor, up: Tensor, name: str, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """The dropout of a gated product: ``dropout(act(gate) * up, p, training)`` as one step, as in T5 v1.1.

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype.
        name: the activation, any curve in ``optiacts.curves.GATES``: "gelu", "mish", "relu", ...
        p: the probability of an element to be dropped.
        training: without it the result is the product.
        inplace: draw as ``torch.nn.functional.dropout`` does with this; on CUDA that gives other numbers.

    Returns:
        The value of the two steps. Saved for backward: it, one slot of its size, two bits per element (ReLU: one).

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
        ValueError: ``p`` is not between 0 and 1.
    """
    curve = curves.get(name)
    if curve.gates and products.is_alike(up, gate) and _is_usual(gate, p, training, inplace):
        found = ops.plain_gated_dropout(gate, up, curve.name, p)
        if found is not None:
            return found
    fits = drops(gate, p, training) and curve.gates and products.matches(up, gate)
    if not fits or activations.compiles_autocast(curve, gate):
        return dropout(products.gated(gate, up, curve.name), p, training, inplace)
    return ops.gated_dropout(gate, up, curve.name, p, inplace)


def _is_usual(input: Tensor, p: float, training: bool, inplace: bool) -> bool:
    """Whether a dropout is what most are, and so may go past the dispatcher."""
    usual = training is True and isinstance(p, float) and 0 < p < _USUAL and isinstance(input, Tensor)
    return usual and not inplace and not torch.compiler.is_compiling()


@known_to_compilers
def survives_dropout(name: str) -> bool:
    """Whether an activation and the dropout behind it can be one step: see ``optiacts.curves.Curve``."""
    return curves.get(name).survives_dropout


def drops(input: Tensor, p: float, training: bool) -> bool:
    """Whether a dropout of ``input`` draws, a gradient is wanted, and ours can do it: see the top of this file."""
    return (
        training is True
        and isinstance(p, float)
        and 0 < p < 1
        and activations.saves_memory(input)
        and (torch.compiler.is_compiling() or not (transforms_active() or forward_mode()))
        and input.device.type in ("cpu", "cuda")
        and input.numel() > 0
        and not sharding.is_dtensor_type(type(input))
        and 1 / (1 - p) < torch.finfo(input.dtype).max
    )
