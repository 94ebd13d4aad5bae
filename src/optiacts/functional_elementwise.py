"""The other activations as functions, with the arguments of their ``torch.nn.functional`` twins.

Each returns PyTorch's own result, bit for bit. When a gradient is to be computed it saves the output instead of the
input, and where the function has a minimum one bit per element:

    saved bytes = output (shared with a following layer that keeps its input), + ceil(n / 8) per row with a minimum

A parameter for which the output does not tell the slope (a negative slope, a step of the wrong sign) means PyTorch's
own op, and so do a missing gradient and tensors that we do not support. Since the output is needed for backward,
changing it in place afterwards makes autograd raise an error.

In place, PyTorch keeps the output of ELU, CELU, SELU and leaky ReLU itself: there ours is PyTorch's op. Of ReLU,
sigmoid, tanh and exp it keeps the output always. Of all others it keeps the input, in place a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from optiacts import curves
from optiacts._torch import forward_mode, transforms_active
from optiacts.functional import activation, saves_memory
from optiacts.ops import clamp as clamp_ops
from optiacts.ops import prelu as prelu_ops
from optiacts.ops import sharding


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """ELU: x where x > 0, else alpha (exp(x) - 1).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        alpha: 0 or more; a negative one means PyTorch's own op.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.elu`` returns. Saved for backward: it.
    """
    return _of_family("elu", functional.elu, input, {"alpha": alpha}, inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """CELU: x where x > 0, else alpha (exp(x / alpha) - 1).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        alpha: above 0; any other means PyTorch's own op.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.celu`` returns. Saved for backward: it.
    """
    return _of_family("celu", functional.celu, input, {"alpha": alpha}, inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """SELU: ELU with alpha 1.6732632 times 1.0507010.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.selu`` returns. Saved for backward: it.
    """
    return activation(input, "selu", inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Leaky ReLU: x where x > 0, else negative_slope x.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        negative_slope: between 0.0001 and 10000; any other means PyTorch's own op.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.leaky_relu`` returns. Saved for backward: it.
    """
    return _of_family("leaky_relu", functional.leaky_relu, input, {"negative_slope": negative_slope}, inplace)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """PReLU: x where x > 0, else weight x, with a weight for each channel or one (arXiv 1502.01852).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory. Its channels
            are its second dimension.
        weight: of shape (channels,) or (1,), of the dtype of ``input``. Where one is not between 0.001 and 1000,
            the call is PyTorch's own op, since its output does not tell the gradients. On a CPU that is looked at in
            every call; elsewhere when it may have changed: see ``optiacts.UnseenChangeError``.

    Returns:
        The tensor ``torch.nn.functional.prelu`` returns. Saved for backward: it. Compiled it is PyTorch's own op.
    """
    served = (
        saves_memory(input)
        and not torch.compiler.is_compiling()
        and not (transforms_active() or forward_mode())
        and type(weight) in (Tensor, torch.nn.Parameter)
        and (weight.dtype, weight.device) == (input.dtype, input.device)
        and weight.ndim == 1
        and not sharding.is_dtensor_type(type(input))
    )
    if served:
        channels = prelu_ops.tells(input, weight)
        if channels is not None:
            return prelu_ops.prelu(input, weight, channels.known)
    return functional.prelu(input, weight)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Softplus: log(1 + exp(beta x)) / beta, and x where beta x > threshold.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        beta: between 0.001 and 1000; any other means PyTorch's own op.
        threshold: at least 15; below, the output does not tell the slope, and PyTorch's own op is used.

    Returns:
        The tensor ``torch.nn.functional.softplus`` returns. Saved for backward: it.
    """
    return _of_family("softplus", functional.softplus, input, {"beta": beta, "threshold": threshold})


def logsigmoid(input: Tensor) -> Tensor:
    """LogSigmoid: log(1 / (1 + exp(-x))).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.

    Returns:
        The tensor ``torch.nn.functional.logsigmoid`` returns. Saved for backward: it. PyTorch saves the input and,
        on a CPU, a buffer of its size.
    """
    return activation(input, "logsigmoid")


def softsign(input: Tensor) -> Tensor:
    """Softsign: x / (1 + |x|).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.

    Returns:
        The tensor ``torch.nn.functional.softsign`` returns. Saved for backward: it. PyTorch saves two of its size.
    """
    return activation(input, "softsign")


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Hard sigmoid: x / 6 + 1/2, held between 0 and 1.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.hardsigmoid`` returns. Saved for backward: it.
    """
    return activation(input, "hardsigmoid", inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Hardswish: x times hard sigmoid of x.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.hardswish`` returns. Saved for backward: it, and one bit per element.
    """
    return activation(input, "hardswish", inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Hardtanh: x, held between min_val and max_val.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        min_val, max_val: the limits. If they are not in order, PyTorch's own op says so.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.hardtanh`` returns. Saved for backward: it.
    """
    return _of_family("hardtanh", functional.hardtanh, input, {"min_val": min_val, "max_val": max_val}, inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """ReLU6: x, held between 0 and 6.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.relu6`` returns. Saved for backward: it.
    """
    return activation(input, "relu6", inplace)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """Softshrink: x drawn towards 0 by lambd, and 0 where |x| <= lambd.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        lambd: above 0; any other means PyTorch's own op.

    Returns:
        The tensor ``torch.nn.functional.softshrink`` returns. Saved for backward: it.
    """
    return _of_family("softshrink", functional.softshrink, input, {"lambd": lambd})


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """Hardshrink: x, and 0 where |x| <= lambd.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        lambd: above 0; any other means PyTorch's own op.

    Returns:
        The tensor ``torch.nn.functional.hardshrink`` returns. Saved for backward: it.
    """
    return _of_family("hardshrink", functional.hardshrink, input, {"lambd": lambd})


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """Threshold: x where x > threshold, else value.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        threshold: the limit.
        value: not above it; a larger one means PyTorch's own op.
        inplace: write the result into the storage of ``input``.

    Returns:
        The tensor ``torch.nn.functional.threshold`` returns. Saved for backward: it.
    """
    return _of_family("threshold", functional.threshold, input, {"threshold": threshold, "value": value}, inplace)


def relu_squared(input: Tensor, inplace: bool = False) -> Tensor:
    """ReLU^2: max(x, 0)^2, evaluated as ``torch.relu(input).square()`` is (arXiv 2109.08668).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        inplace: write the result into the storage of ``input``.

    Returns:
        The value of that expression. Saved for backward: it.
    """
    return activation(input, "relu_squared", inplace)


def laplace(input: Tensor) -> Tensor:
    """Laplace: 0.5 (1 + erf((x - 0.707107) / (0.282095 sqrt(2)))), as transformers evaluates it (arXiv 2209.10655).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.

    Returns:
        The value of that expression. Saved for backward: it.
    """
    return activation(input, "laplace")


def clipped_gelu(input: Tensor) -> Tensor:
    """GELU held below 10: ``torch.clip(gelu(input), -10, 10)``, which transformers calls "gelu_10".

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.

    Returns:
        The value of that expression. Saved for backward: it, and one bit per element.
    """
    return activation(input, "clipped_gelu")


def swish(input: Tensor, beta: float = 1.0, inplace: bool = False) -> Tensor:
    """Swish: x * sigmoid(beta x), evaluated as ``input * torch.sigmoid(beta * input)`` is (arXiv 1710.05941).

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        beta: a number between 0.05 and 20; any other, and a tensor, means that expression itself.
        inplace: write the result into the storage of ``input``.

    Returns:
        The value of that expression. Saved for backward: it, and one bit per element.
    """
    return _of_family("swish", _swish, input, {"beta": beta}, inplace)


def _swish(input: Tensor, beta: Any, inplace: bool = False) -> Tensor:
    gate = torch.sigmoid(beta * input)
    return input.mul_(gate) if inplace else input * gate


def clamp(input: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """``torch.clamp(input, min, max)``: x, held between the bounds. Its gradient passes at a bound.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        min, max: numbers, one of which may be left out. Tensors mean PyTorch's own op.

    Returns:
        The tensor ``torch.clamp`` returns. Saved for backward: one bit per element, and not the output.
        So this is for a clamp whose input nobody else keeps. The gradient is PyTorch's own, to the bit.
    """
    numbers = all(type(bound) in (int, float, type(None)) for bound in (min, max)) and (min, max) != (None, None)
    bounds = [None if bound is None else float(bound) for bound in (min, max)] if numbers else []
    if bounds and isinstance(input, Tensor) and not torch.compiler.is_compiling():
        found: Tensor | None = clamp_ops.plain_clamp(input, *bounds)
        if found is not None:
            return found
    served = (
        bounds
        and saves_memory(input)
        and (torch.compiler.is_compiling() or not (transforms_active() or forward_mode()))
        and not sharding.is_dtensor_type(type(input))
    )
    if not served:
        return torch.clamp(input, min, max)
    return clamp_ops.clamp(input, *bounds)


def _of_family(
    family: str, theirs: Callable[..., Tensor], input: Tensor, values: dict[str, Any], inplace: bool = False
) -> Tensor:
    """The curve of a family; PyTorch's function where there is none with these values."""
    name = curves.member(family, **values)
    if name is None:
        return theirs(input, **values, inplace=True) if inplace else theirs(input, **values)
    return activation(input, name, inplace)
