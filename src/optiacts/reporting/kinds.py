"""What a held storage is for. Each storage is charged once, to the holder that would keep it in any case."""

from __future__ import annotations

from typing import NamedTuple

from optiacts.held import activations
from optiacts.held.trace import Holder, Trace

LINEARS = "linears' inputs"
ATTENTION = "attention"
NORMS = "norms"
MASKS = "dropout masks"
LOSS = "logits and loss"
CHECKPOINTS = "checkpoints"
OTHER = "other"
GATED = "gated products"
ACTIVATIONS = "activation functions"

# First come those that keep what they keep whatever an activation does; an activation is charged only with
# what it alone holds, so that converting it shows in its own row.
KINDS = (LINEARS, ATTENTION, NORMS, MASKS, LOSS, CHECKPOINTS, OTHER, GATED, ACTIVATIONS)

_LINEAR_NODES = ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "Linear")
_NORM_NODES = (
    "NativeLayerNorm",
    "NativeGroupNorm",
    "NativeBatchNorm",
    "CudnnBatchNorm",
    "FusedRmsNorm",
    "OptiActsNorm",
)
_LOSS_NODES = ("LogSoftmax", "NllLoss", "CrossEntropyLoss", "MseLoss", "BinaryCrossEntropyWithLogits")


class Charge(NamedTuple):
    """The kind a storage is charged to, and the class of the layer that holds it."""

    kind: str
    layer: str


def charges(trace: Trace) -> dict[int, Charge]:
    """For the key of each storage held: what it is charged to."""
    products = _gated_products(trace)
    result: dict[int, Charge] = {}
    for key, storage in trace.storages.items():
        kinds = [(KINDS.index(_kind(holder, products)), _layer(holder)) for holder in storage.holders]
        rank, layer = min(kinds)
        result[key] = Charge(KINDS[rank], layer)
    return result


def _gated_products(trace: Trace) -> set[int]:
    """The graph nodes that multiply an activation's output with something: the product of a gated MLP."""
    by_output = {activated.output_key: activated for activated in trace.activated}
    found: set[int] = set()
    for key, storage in trace.storages.items():
        activated = by_output.get(key)
        if activated is not None:
            found |= {h.node for h in storage.holders if h.op == "Mul" and not activated.owns(h, storage)}
    return found


def _kind(holder: Holder, products: set[int]) -> str:
    innermost = holder.where[-1].layer if holder.where else ""
    if activations.is_gated_node(holder.op):
        return GATED
    if activations.is_node(holder.op) or any(call.curve is not None for call in holder.where):
        return ACTIVATIONS
    if holder.node in products:
        return GATED
    if "Dropout" in holder.op or "Dropout" in innermost:
        return MASKS
    if "Norm" in innermost or holder.op.startswith(_NORM_NODES):
        return NORMS
    if holder.op.startswith(_LOSS_NODES):
        return LOSS
    projection = innermost.endswith("Linear") or innermost.startswith("Conv")
    if holder.op.startswith("ScaledDotProduct") or ("Attention" in innermost and not projection):
        return ATTENTION
    if projection or holder.op.startswith(_LINEAR_NODES):
        return LINEARS
    return OTHER


def _layer(holder: Holder) -> str:
    return holder.where[-1].layer if holder.where else "(no module)"
