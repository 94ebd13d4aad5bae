"""The error for a tensor that was changed in place although backward needs it: who keeps it, and what to do."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn import Module

from optiacts._torch import saved_tensors_hooks


class Maker(Protocol):
    """Who evaluates an activation, if it can be named: a converted module, or a converted function."""

    def optiacts_described(self) -> str:
        """Its name for people."""

    def optiacts_paths(self, model: Module) -> set[str]:
        """The paths of the modules of ``model`` that it is, or that run it."""


class OverwrittenError(RuntimeError):
    """The output of an activation or norm was changed in place between its forward and its backward.

    PyTorch's op keeps its input and would not have noticed. A norm that keeps its input needs that, where the norm
    itself may keep a copy. ``maker`` is who made the output, if known.
    """

    def __init__(self, message: str, maker: Maker | None) -> None:
        super().__init__(message)
        self.maker = maker

    def paths_in(self, model: Module) -> set[str]:
        """The paths of the modules of ``model`` that may have made the output; none if that is not known."""
        return set() if self.maker is None else self.maker.optiacts_paths(model)


def made_by(output: Tensor, maker: Maker) -> Tensor:
    """Lets the error of ``output``'s backward name ``maker``."""
    if not torch.compiler.is_compiling() and isinstance(output.grad_fn, BackwardCFunction):
        output.grad_fn.maker = maker
        known = getattr(getattr(output.grad_fn, "info", None), "known", None)
        if known is not None:  # a norm's weights, of which a later error tells
            known.maker = maker
    return output


def remember(ctx: Any, output: Tensor, dirty: bool = False) -> None:
    """Notes the state of ``output`` as it is saved, where PyTorch will not check it.

    Hooks on saved tensors (checkpointing, offloading) switch PyTorch's own check off. ``dirty``: the Function marks
    the output as changed itself, which counts as one more change.
    """
    if torch.compiler.is_compiling():
        ctx.state = None
    else:
        remember_unseen(ctx, output, dirty)


def remember_unseen(ctx: Any, output: Tensor, dirty: bool = False) -> None:
    """The same where no compiler traces."""
    hooks = saved_tensors_hooks()
    if hooks is None:
        ctx.state = None
        return
    recomputed = getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"
    ctx.state = output._version + dirty, None if recomputed else _address(output)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def saved_tensors(ctx: Any) -> tuple[Tensor, ...]:
    """``ctx.saved_tensors``; ``OverwrittenError`` if the output among them was changed in place."""
    try:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        state = getattr(ctx, "state", None)
        if state is not None and saved[0]._version > state[0] and state[1] in (None, _address(saved[0])):
            raise RuntimeError("the output was modified by an inplace operation after it was saved")
        return saved
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        maker: Maker | None = getattr(ctx, "maker", None)
        who = f" of {maker.optiacts_described()}" if maker is not None else ""
        raise OverwrittenError(
            f"optiacts: what is kept of an activation or norm{who} was changed in place, but its backward needs it "
            "as it was. Change a copy, or leave the module alone: optiacts.convert(model, exclude=...). "
            f"PyTorch says: {error}",
            maker,
        ) from error
