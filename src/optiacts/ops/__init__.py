"""The ops, opaque to compilers, so that what is saved stays what we chose: one file per family.

A family's file has everything about its ops (schema, kernel, checks, fake kernel, vmap, sharding), each declared once
through ``library``, and the autograd Functions that call them: what is saved, backward, double backward, forward
mode. The Functions stand outside the opaque ops: compilers then keep exactly what is saved there. Those for GPUs see
what an op computes, and fuse it: see ``optiacts.backends.traced``.

In the schemas, ``curve`` is a curve's name.
"""

from __future__ import annotations

from optiacts.ops.activation import activation_backward, activation_forward, activation_forward_
from optiacts.ops.chain import chain_forward
from optiacts.ops.dropout import dropout_pack, dropout_scale
from optiacts.ops.gated import gated_backward, gated_backward_fused, gated_forward

__all__ = [
    "activation_backward",
    "activation_forward",
    "activation_forward_",
    "chain_forward",
    "dropout_pack",
    "dropout_scale",
    "gated_backward",
    "gated_backward_fused",
    "gated_forward",
]
