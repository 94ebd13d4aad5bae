"""Where converting an activation pays: who else keeps its output, and what would be freed.

An activation that keeps its output saves memory only if the following layer keeps the same storage anyway.
A frozen Linear does not, nor does a Linear behind a dropout (it keeps the dropout's output), nor a quantised
layer that keeps a copy of its own. Nothing of this is guessed from the architecture: it is read off the
storages that autograd holds after a forward, on real tensors or, at no cost, on fake ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optiacts.held.activations import CurveOf, is_gated_node
from optiacts.held.calls import describe
from optiacts.held.trace import Activated, Trace, trace
from optiacts.packing import packed_shape


@dataclass(frozen=True)
class ActivationSite:
    """One evaluation of an activation in a forward, and what converting it alone would change.

    ``frees``: bytes of the storages that it alone holds now. ``costs``: bytes that the converted one would hold
    alone: the side bits, ceil(D / 8) for each row of D elements, and its output if nobody else keeps it.
    """

    path: str  # of the activation module; of the module that calls it, if it is a function
    activation: str  # its curve
    is_module: bool
    shape: tuple[int, ...]
    kept_by: tuple[str, ...]  # others that hold the storage of the output
    goes_to: tuple[str, ...]  # ops that take the output
    taken_by: tuple[str, ...]  # the modules that these are part of, by path
    frees: int
    costs: int

    @property
    def gain(self) -> int:
        """Bytes saved by converting this activation; negative if it would hold more than before."""
        return self.frees - self.costs

    @property
    def pays(self) -> bool:
        """Whether to convert it."""
        return self.gain > 0

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        if self.kept_by:
            return f"its output is kept by {self.kept_by[0]}" + (" as well" if self.pays else "")
        if not self.goes_to:
            return "nobody takes its output"
        return f"its output goes to {self.goes_to[-1]}, which does not keep it"


def sharing(curve_of: CurveOf, model: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[ActivationSite, ...]:
    """Runs ``model(*args, **kwargs)`` once and tells of every activation whether converting it pays.

    ``optiacts.reporting.sharing`` is the same, with the activations that conversion knows.
    """
    return sites(trace(curve_of, model, *args, **kwargs))


def without_gain(found: tuple[ActivationSite, ...]) -> dict[str, str]:
    """The paths of the activation modules that had better stay as they are, each with the reason.

    Those are the modules whose evaluations together gain nothing.
    """
    gains: dict[str, int] = {}
    for site in found:
        if site.is_module:
            gains[site.path] = gains.get(site.path, 0) + site.gain
    reasons = {site.path: site.reason for site in found if not site.pays}
    return {path: reasons[path] for path, gain in gains.items() if gain <= 0}


def unkept(found: tuple[ActivationSite, ...], sharing: frozenset[str] = frozenset()) -> dict[str, str]:
    """For each of the modules why nobody else keeps its output; an empty text if somebody does, once at least.

    The modules ``sharing`` keep a copy that can be shared with them.
    """
    reasons: dict[str, str] = {}
    for site in found:
        if site.is_module:
            kept = site.kept_by or sharing.intersection(site.taken_by)
            reasons[site.path] = "" if kept else reasons.get(site.path, site.reason)
    return reasons


def unkept_products(traced: Trace) -> set[str]:
    """The paths of the modules whose gated products, all of them, nobody else keeps; of a converted model."""
    paths: dict[int, str] = {}
    kept: set[int] = set()
    for storage in traced.storages.values():
        products = {holder.node for holder in storage.holders if is_gated_node(holder.op)}
        paths |= {h.node: h.where[-1].path for h in storage.holders if h.node in products and h.where}
        if len({holder.node for holder in storage.holders}) > 1:
            kept |= products
    return set(paths.values()) - {path for node, path in paths.items() if node in kept}


def sites(traced: Trace) -> tuple[ActivationSite, ...]:
    """The same for a forward that has been traced."""
    found = (_site(activated, traced) for activated in traced.activated)
    return tuple(site for site in found if site is not None)


def _site(activated: Activated, traced: Trace) -> ActivationSite | None:
    """None if autograd holds nothing for it: then no gradient is wanted there."""
    own = held = 0
    for storage in traced.storages.values():
        mine = [activated.owns(holder, storage) for holder in storage.holders]
        held += any(mine)
        own += storage.nbytes if all(mine) else 0
    if not held:
        return None
    output = traced.storages.get(activated.output_key)
    others = [h for h in output.holders if not activated.owns(h, output)] if output is not None else []
    nbytes = math.prod(activated.shape) * activated.dtype.itemsize
    return ActivationSite(
        path=activated.call.path,
        activation=activated.name,
        is_module=activated.is_module,
        shape=activated.shape,
        kept_by=tuple(dict.fromkeys(describe(h.where) for h in others)),
        goes_to=tuple(dict.fromkeys(activated.consumers)),
        taken_by=tuple(dict.fromkeys(activated.takers)),
        frees=own,
        costs=math.prod(packed_shape(activated.shape)) + (0 if others else nbytes),
    )
