"""A chain's output times a small gate, as squeeze-and-excitation has it: y * sigmoid(s), one s for each channel.

PyTorch keeps y for the gate's gradient, and the product for what follows. But the product and the gate tell y: the
quotient, rounded to y's dtype, is y to a unit in its last place. So the chain's backward and the product's take it
from there, and y is let go as soon as the product is there. Saved by the product are itself (shared with a following
layer that keeps its input) and the gate.

That holds as long as the product is no fainter than the numbers of its dtype. A CPU looks at the gate and keeps y
where it is below 2^-24. Elsewhere the host would wait: a gate below 2^-60 (a sigmoid of -41) is found in backward,
whose gradients are NaN and end in an error, as for weights that were changed unseen. In float16, whose numbers end at
2^-24, and under hooks of others on saved tensors, y is kept.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optiacts._torch import is_fake, saved_tensors_hooks
from optiacts.ops.functions import differentiable
from optiacts.ops.norm_channels import Known, waits
from optiacts.overwritten import OverwrittenError, remember, saved_tensors

_LEAST_LOOKED_AT = 2.0**-24
_LEAST = 2.0**-60
_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
_SMALL = 8  # so many elements of the product for one of the gate, at least


class Kept:
    """A chain's output in the keeping of its graph: itself, or the product and the gate that give it back."""

    def __init__(self, packed: Any, unpack: Callable[[Any], Tensor]) -> None:
        self._packed, self._unpack = packed, unpack
        self._product: tuple[Tensor, Tensor, tuple[int, int], Known | None, Any] | None = None

    @property
    def itself(self) -> bool:
        """Whether it is the output that is kept."""
        return self._product is None

    def replace(self, product: Tensor, gate: Tensor, known: Known | None, maker: Any) -> None:
        """Lets the output go."""
        versions = product._version, gate._version
        self._product = product.detach(), gate.detach(), versions, known, maker
        self._packed = None

    def found(self, output: Tensor) -> None:
        """Takes an output that was restored by somebody, for the backward that comes next."""
        self._packed, self._unpack, self._product = output, _itself, None

    def output(self) -> Tensor:
        if self._product is None:
            return self._unpack(self._packed)
        product, gate, versions, known, maker = self._product
        if (product._version, gate._version) != versions:
            raise OverwrittenError(
                "optiacts: the product of a norm's activation and a gate, or the gate, was changed in place, but "
                "backward needs them as they were: they were modified by an inplace operation. Change a copy, or "
                "leave the module alone: optiacts.convert(model, exclude=...).",
                maker,
            )
        return _restored(product, gate, known, maker)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _restored(product: Tensor, gate: Tensor, known: Known | None, maker: Any) -> Tensor:
    """The output from its product with the gate; NaN, with a note, if the gate may have swallowed it."""
    output = product / gate
    if known is None or not waits(gate.device) or is_fake(gate):
        return output
    lost = ~((gate >= _LEAST) & (gate <= 1)).all()
    known.note(lost, maker)
    return output.masked_fill(lost, torch.nan)


class Keeping(contextlib.AbstractContextManager["Keeping"]):
    """While it is entered, the first tensor that a Function saves goes into ``kept``.

    Needed under hooks on saved tensors: what was packed by them cannot be taken over later, as ``_taken_over`` does.
    """

    def __init__(self, outer: Any) -> None:
        self.kept: Kept | None = None
        self._outer = outer
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> Keeping:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        del self._hooks  # they hold this object

    def _pack(self, tensor: Tensor) -> Any:
        packed = self._outer[0](tensor)
        if self.kept is None:
            self.kept = packed = Kept(packed, self._outer[1])
        return packed

    def _unpack(self, packed: Any) -> Tensor:
        found: Tensor = packed.output() if isinstance(packed, Kept) else self._outer[1](packed)
        return found


def keeping(z: Tensor) -> Keeping | None:
    """For a chain of ``z`` under hooks: None if its output cannot be let go of, or if there are none."""
    hooks = saved_tensors_hooks()
    return None if hooks is None or not _may_be_scaled(z, hooks) else Keeping(hooks)


def _may_be_scaled(y: Tensor, hooks: Any) -> bool:
    """Whether a product may take the place of a chain's output.

    Hooks of the report see what is let go; others may want it elsewhere.
    """
    if torch.compiler.is_compiling() or y.ndim < 3 or y.dtype not in _DTYPES:
        return False
    return hooks is None or str(getattr(hooks[0], "__module__", "")).startswith("optiacts.")


def scaled(y: Tensor, gate: Tensor) -> Tensor | None:
    """``y * gate``, with y let go; None, with nothing run, if y is no chain's output or the gate does not tell it."""
    node: Any = y.grad_fn
    if not hasattr(node, "saved_version") or not _may_be_scaled(y, saved_tensors_hooks()):
        return None
    known = node.known
    if not isinstance(gate, Tensor) or not _broadcast(gate, y) or not _tells(gate, known):
        return None
    reference = getattr(node, "kept", None)
    kept: Kept | None = _taken_over(node, y) if reference is None else reference()
    if kept is None or not kept.itself:
        return None
    result: Tensor = OptiActsScaled.apply(y, gate, kept, known)
    return result


def _taken_over(node: Any, y: Tensor) -> Kept | None:
    """What the graph of the chain ``node`` holds of its output y, from now on kept so that it can be let go.

    None if it was changed in place, which backward will say, if it is gone, or if hooks have packed it.
    """
    if y._version != node.saved_version:
        return None
    kept = Kept(y.detach(), _itself)
    try:
        node._raw_saved_tensors[0].register_hooks(lambda tensor: kept, Kept.output)
    except RuntimeError:
        return None
    node.kept = weakref.ref(kept)
    return kept


def _broadcast(gate: Tensor, y: Tensor) -> bool:
    """Whether the gate is small, and of y's dtype, device and number of dimensions."""
    alike = gate.dtype is y.dtype and gate.device == y.device and gate.ndim == y.ndim and type(gate) is type(y)
    fits = alike and all(own in (1, length) for own, length in zip(gate.shape, y.shape, strict=True))
    return fits and 0 < gate.numel() * _SMALL <= y.numel()


def _tells(gate: Tensor, known: Known | None) -> bool:
    """Whether the product tells y, as far as can be seen now."""
    if is_fake(gate):
        return True
    if waits(gate.device):
        return known is not None
    least, most = torch.aminmax(gate.detach())
    return bool(least >= _LEAST_LOOKED_AT) and bool(most <= 1)


class OptiActsScaled(torch.autograd.Function):
    """(y, gate) -> y * gate, where y is a chain's output, which it lets go."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, kept: Kept, known: Known | None) -> Tensor:
        product = y * gate
        ctx.kept, ctx.known = weakref.ref(kept), known
        remember(ctx, product)
        ctx.save_for_backward(product, gate)
        kept.replace(product, gate, known, None)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        product, gate = saved_tensors(ctx)
        by_gate = None
        if ctx.needs_input_grad[1]:
            if differentiable():
                y = product / gate
            else:
                y = _restored(product, gate, ctx.known, getattr(ctx, "maker", None))
                kept: Kept | None = ctx.kept()
                if kept is not None:
                    kept.found(y)
            by_gate = (grad * y).sum_to_size(gate.shape)
        return grad * gate if ctx.needs_input_grad[0] else None, by_gate, None, None
