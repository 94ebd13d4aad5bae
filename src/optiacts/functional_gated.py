"""Gated products h = act(gate) * up, the middle of a gated MLP, that keep h and one more tensor for backward.

The result is that of PyTorch's own expression ``act(gate) * up``, bit for bit. Where a gradient of ``gate`` is
wanted, saved are h, which a following Linear keeps anyway, one slot and two bits per element (ReGLU: one):

    saved bytes = h (shared with the next layer) + slot (as large as h) + 2 * ceil(n / 8) per row

PyTorch holds gate, act(gate), up and h. The gradients' errors and the few elements that are not exact are listed
in docs/gated.md. Without a gradient of ``gate``, with tensors of different shapes or dtypes, and with tensors
that we do not support, the call *is* PyTorch's expression. Since h is needed for backward, changing it in place
afterwards makes autograd raise an error.
"""

from __future__ import annotations

from torch import Tensor

from optiacts import curves
from optiacts.functional import compiles_autocast, gelu_curve, passes_our_ops, saves_memory
from optiacts.ops import gated as ops
from optiacts.ops import sharding


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """SwiGLU: silu(gate) * up, the gated product of Llama, Mistral, Qwen and Phi-3 (arXiv 2002.05202).

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype. If left out, ``gate`` is the output of one fused projection:
            its last dimension holds the gate first, up second, and its gradient is written in one piece,
            without the concatenation that follows a ``chunk``. (``torch.nn.functional.glu`` has the gate last.)

    Returns:
        The tensor that ``silu(gate) * up`` is. Saved for backward: it, one slot of its size, two bits per element.
    """
    return gated(gate, up, "silu")


def geglu(gate: Tensor, up: Tensor | None = None, approximate: str = "none") -> Tensor:
    """GEGLU: gelu(gate) * up, the gated product of T5 v1.1 and Gemma (arXiv 2002.05202).

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype, or nothing: see ``swiglu``.
        approximate: ``"none"`` or ``"tanh"``; PyTorch raises ``RuntimeError`` on anything else.

    Returns:
        The tensor that ``gelu(gate) * up`` is. Saved for backward: it, one slot of its size, two bits per element.
    """
    return gated(gate, up, gelu_curve(gate, approximate))


def reglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """ReGLU: relu(gate) * up (arXiv 2002.05202).

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype, or nothing: see ``swiglu``.

    Returns:
        The tensor that ``relu(gate) * up`` is. Saved for backward: it, one slot of its size, one bit per element.
    """
    return gated(gate, up, "relu")


def gated(gate: Tensor, up: Tensor | None, name: str) -> Tensor:
    """act(gate) * up with the activation called ``name``.

    Args:
        gate: a tensor of any shape and layout; float64, float32, bfloat16 or float16 to save memory.
        up: a tensor of the same shape and dtype, or None: see ``swiglu``.
        name: that of any curve in ``optiacts.curves``: "gelu", "mish", "relu", ...

    Returns:
        The value of the expression. Saved for backward: it, one slot of its size, two bits per element.

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
    """
    curve = curves.get(name)
    if up is None:
        if gate.ndim == 0 or gate.shape[-1] % 2:
            raise ValueError(f"gate without up must have an even last dimension; got shape {tuple(gate.shape)}")
        if saves_memory(gate) and sharding.supports_gated(gate) and not compiles_autocast(curve, gate):
            return ops.gated_fused(gate, curve.name)
        gate, up = gate.chunk(2, dim=-1)  # of a DTensor with sharded rows: gathered, and then two tensors to us
    if saves_memory(gate) and matches(up, gate) and not compiles_autocast(curve, gate):
        return ops.gated(gate, up, curve.name)
    return curve.forward(gate) * up


def matches(up: Tensor, gate: Tensor) -> bool:
    """Whether the product needs neither broadcasting nor type promotion, nor a kind of tensor unknown to us."""
    return (
        (up.shape, up.dtype, up.device, up.layout)
        == (
            gate.shape,
            gate.dtype,
            gate.device,
            gate.layout,
        )
        and passes_our_ops(up)
        and sharding.supports_gated(gate, up)
    )
