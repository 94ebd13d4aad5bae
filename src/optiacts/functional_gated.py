"""Gated products h = act(gate) * up, the middle of a gated MLP, that keep h and one more tensor for backward.

The result is that of PyTorch's own expression ``act(gate) * up``, bit for bit. Where a gradient of ``gate`` is
wanted, saved are h, which a following Linear keeps anyway, one slot and two bits per element (ReGLU: one):

    saved bytes = h (shared with the next layer) + slot (as large as h) + 2 * ceil(n / 8) per row
    with keep_output=False, where nobody keeps h:  gate + up

PyTorch holds gate, act(gate), up and h. The gradients' errors and the few elements that are not exact are listed
in docs/gated.md. Without a gradient of ``gate``, with tensors of different shapes or dtypes, and with tensors
that we do not support, the call *is* PyTorch's expression. Since h is needed for backward, changing it in place
afterwards makes autograd raise an error.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from optiacts import curves
from optiacts._torch import PLAIN, forward_mode, transforms_active
from optiacts.functional import compiles_autocast, gelu_curve, passes_our_ops, saves_memory
from optiacts.functional_elementwise import clamp
from optiacts.ops import gated as ops
from optiacts.ops import glu as glu_ops
from optiacts.ops import sharding
from optiacts.ops.gated_inputs import gated_from_inputs


def swiglu(gate: Tensor, up: Tensor | None = None, keep_output: bool = True) -> Tensor:
    """SwiGLU: silu(gate) * up, the gated product of Llama, Mistral, Qwen and Phi-3 (arXiv 2002.05202).

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype. If left out, ``gate`` is the output of one fused projection:
            its last dimension holds the gate first, up second, and its gradient is written in one piece,
            without the concatenation that follows a ``chunk``. (``torch.nn.functional.glu`` has the gate last.)
        keep_output: False keeps gate and up instead, where nobody else keeps the product; see ``gated``.

    Returns:
        The tensor that ``silu(gate) * up`` is. Saved for backward: it, one slot of its size, two bits per element.
    """
    return gated(gate, up, "silu", keep_output)


def geglu(gate: Tensor, up: Tensor | None = None, approximate: str = "none", keep_output: bool = True) -> Tensor:
    """GEGLU: gelu(gate) * up, the gated product of T5 v1.1 and Gemma (arXiv 2002.05202).

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype, or nothing: see ``swiglu``.
        approximate: ``"none"`` or ``"tanh"``; PyTorch raises ``RuntimeError`` on anything else.
        keep_output: see ``gated``.

    Returns:
        The tensor that ``gelu(gate) * up`` is. Saved for backward: it, one slot of its size, two bits per element.
    """
    return gated(gate, up, gelu_curve(gate, approximate), keep_output)


def reglu(gate: Tensor, up: Tensor | None = None, keep_output: bool = True) -> Tensor:
    """ReGLU: relu(gate) * up (arXiv 2002.05202).

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype, or nothing: see ``swiglu``.
        keep_output: see ``gated``.

    Returns:
        The tensor that ``relu(gate) * up`` is. Saved for backward: it, one slot of its size, one bit per element.
    """
    return gated(gate, up, "relu", keep_output)


def reglu_squared(gate: Tensor, up: Tensor | None = None, keep_output: bool = True) -> Tensor:
    """ReGLU with the square of ReLU: relu(gate)^2 * up (arXiv 2109.08668).

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype, or nothing: see ``swiglu``.
        keep_output: see ``gated``.

    Returns:
        The tensor that ``relu(gate).square() * up`` is. Saved for backward: it, one slot of its size, one bit per
        element.
    """
    return gated(gate, up, "relu_squared", keep_output)


def clamped_swiglu(gate: Tensor, up: Tensor | None = None, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """The gated product of GPT-OSS, evaluated as transformers does:

        gate = gate.clamp(max=limit)
        (up.clamp(-limit, limit) + 1) * (gate * sigmoid(alpha * gate))

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype. If left out, ``gate`` is the output of one fused projection as
            GPT-OSS has it: gate and up take turns along its last dimension, unlike in ``swiglu``.
        alpha: a number between 0.05 and 20; any other means that expression itself.
        limit: a number.

    Returns:
        The value of the expression. Saved for backward: it, one slot of its size, four bits per element. Two of them
        say where the clamps pass the gradient, as PyTorch's do: at a bound, not beyond.
    """
    if up is None:
        if gate.ndim == 0 or gate.shape[-1] % 2:
            raise ValueError(f"gate without up must have an even last dimension; got shape {tuple(gate.shape)}")
        gate, up = gate[..., ::2], gate[..., 1::2]
    gate, up = clamp(gate, max=limit), clamp(up, -limit, limit) + 1
    name = "quick_gelu" if alpha == 1.702 else curves.member("swish", beta=alpha)
    return gated(gate, up, name) if name is not None else up * (gate * torch.sigmoid(gate * alpha))


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """GLU: a * sigmoid(b) of the halves of ``input`` (arXiv 1612.08083). Written in two steps it is
    ``gated(b, a, "sigmoid")``, whose rounding in 16 bits is another.

    Args:
        input: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        dim: the dimension that holds a first, b second.

    Returns:
        The tensor ``torch.nn.functional.glu`` returns. Saved for backward: it, and b; PyTorch saves a and b.
    """
    if not keeps_inputs(input) or input.ndim == 0 or not -input.ndim <= dim < input.ndim or input.shape[dim] % 2:
        return functional.glu(input, dim)
    return glu_ops.glu(input, dim % input.ndim)


def gated(gate: Tensor, up: Tensor | None, name: str, keep_output: bool = True) -> Tensor:
    """act(gate) * up with the activation called ``name``.

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype, or None: see ``swiglu``.
        name: that of any curve in ``optiacts.curves``: "gelu", "mish", "relu", ...
        keep_output: whether somebody else keeps the product, such as a trained Linear. If not, gate and up are less,
            with PyTorch's own gradients; their price is one more evaluation of the activation in backward.

    Returns:
        The value of the expression. Saved for backward: it, one slot of its size, two bits per element; without
        ``keep_output`` gate and up.

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
    """
    curve = curves.get(name)
    if keep_output and curve.gates and not torch.compiler.is_compiling():
        found = plain_gated(gate, up, curve.name)
        if found is not None:
            return found[0]
    fits = curve.gates and not compiles_autocast(curve, gate)
    if not keep_output and keeps_inputs(gate):
        halves = _halves(gate) if up is None else (gate, up)
        if matches(halves[1], halves[0]):
            return gated_from_inputs(*halves, curve.name)
    if up is None:
        halves = _halves(gate)
        if fits and saves_memory(gate) and sharding.supports_gated(gate):
            return ops.gated_fused(gate, curve.name)
        gate, up = halves  # of a DTensor with sharded rows: gathered, and then two tensors to us
    if fits and saves_memory(gate) and matches(up, gate):
        return ops.gated(gate, up, curve.name)
    return curve.forward(gate) * up


def plain_gated(gate: Tensor, up: Tensor | None, name: str) -> tuple[Tensor, Tensor] | None:
    """The product and its edges, of plain tensors while nobody looks on; None for any others."""
    made: tuple[Tensor, Tensor] | None = None
    if up is None:
        if isinstance(gate, Tensor) and gate.ndim and not gate.shape[-1] % 2:
            made = ops.plain_gated_fused(gate, name)
    elif isinstance(gate, Tensor) and is_alike(up, gate):
        made = ops.plain_gated(gate, up, name)
    return made


def _halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    if gate_up.ndim == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"gate without up must have an even last dimension; got shape {tuple(gate_up.shape)}")
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


def keeps_inputs(gate: Tensor) -> bool:
    """Whether a product can keep its inputs: not under transforms, and compilers find that out by themselves."""
    return (
        saves_memory(gate)
        and not torch.compiler.is_compiling()
        and not (transforms_active() or forward_mode())
        and not sharding.is_dtensor_type(type(gate))
    )


def is_alike(up: Tensor, gate: Tensor) -> bool:
    """Whether the product needs neither broadcasting nor type promotion."""
    return isinstance(up, Tensor) and up.shape == gate.shape and up.dtype is gate.dtype


def matches(up: Tensor, gate: Tensor) -> bool:
    """The same, and that it is of no kind of tensor unknown to us."""
    if not is_alike(up, gate) or up.device != gate.device or up.layout is not gate.layout:
        return False
    if type(up) in PLAIN and type(gate) in PLAIN:
        return True
    return passes_our_ops(up) and sharding.supports_gated(gate, up)
