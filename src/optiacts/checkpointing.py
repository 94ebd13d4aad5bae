"""Selective checkpointing that keeps what our ops return: docs/checkpointing.md has the figures."""

from __future__ import annotations

from typing import Any

from torch.utils.checkpoint import CheckpointPolicy

from optiacts import ops


def checkpoint_ops() -> frozenset[Any]:
    """The ops whose results backward needs: an activation's output and side bits, a gated product's with its slot.

    An activation behind a norm, differentiated together with it, is one too. For whatever takes a set of ops to save.
    Names for configuration files are ``op.name()``: ``"optiacts::activation_forward"``, ``"optiacts::gated_forward"``
    and ``"optiacts::chain_forward"``.
    """
    return frozenset((ops.activation_forward, ops.gated_forward, ops.chain_forward))


def checkpoint_policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """A policy for ``torch.utils.checkpoint.create_selective_checkpoint_contexts``: keep our ops, and them alone.

        contexts = functools.partial(create_selective_checkpoint_contexts, optiacts.checkpoint_policy)
        h = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False, context_fn=contexts)

    Kept besides the inputs of the checkpointed function: of each activation, be it alone or behind a norm, its output
    and at most one bit per element, of each gated product its output, its slot and two bits, which the layer after it
    shares.
    """
    if op in _KEPT:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_KEPT = checkpoint_ops()
