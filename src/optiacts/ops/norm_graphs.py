"""Which norms a compiled graph may rely on to keep their output, and what happens when that changes.

A graph keeps outputs or inputs as it was traced; it cannot look and then choose. So all weights that a graph may be
used for are looked at while it is traced, after every optimizer step, and when a state dict is loaded. A norm with a
bad channel is *marked*, by an attribute of its weight that traced code asks for: compilers guard that, and trace anew
when it changes, once. A marked norm takes PyTorch's path in compiled graphs, and keeps its mark until
``norm_weights_changed()``.

A change that nobody sees meets ``check`` in the graph itself: an error at once on a CPU; elsewhere NaN in backward
and an error after the next optimizer step. Either way the norm is marked from then on.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from optiacts import backends
from optiacts._torch import is_capturing, is_fake, known_to_compilers
from optiacts.chains import Chain
from optiacts.norms import Norm
from optiacts.ops.norm_channels import (
    Known,
    UnseenChangeError,
    all_known,
    collect,
    guard,
    remembered,
    versions_of,
    waits,
    watch_optimizers,
)
from optiacts.overwritten import Maker

# On the weight, or the bias where there is no weight. It is there, and false, from when a graph is traced: that an
# attribute is missing compilers do not guard in PyTorch 2.11.
MARK = "optiacts_bad_channels"
_MOST_MARKS = 4  # of norms that are alike, each of which compiles anew; the next one marks them all


class _Parts(NamedTuple):
    """The names of a norm's weight and bias, empty where there is none, and what is added to the weight."""

    weight: str
    bias: str
    offset: float


_modules: weakref.WeakKeyDictionary[Module, _Parts] = weakref.WeakKeyDictionary()


def register(module: Module, weight: str, bias: str, offset: float) -> None:
    """Tells that ``module`` is a norm with parameters of these names.

    A graph that is traced for one norm may be used for all that are like it: they are looked at together.
    """
    _modules[module] = _Parts(weight, bias, offset)


def may_rely(kind: Norm | Chain, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> bool:
    """While a graph is traced: whether it may rely on an output of ``dtype``."""
    given = weight if weight is not None else bias
    if given is None:
        return True
    if not isinstance(given, Parameter):
        return False  # perhaps made by the graph itself: there is nothing to look at
    # compilers may have made symbols of numbers: told apart here, they are constants
    if kind.offset not in (0.0, 1.0):
        return False
    remainder, curve = (False, kind.curve) if isinstance(kind, Chain) else (bool(kind.remainder), "")
    _look(weight, bias, 1.0 if kind.offset else 0.0, remainder, curve, dtype)
    return not getattr(given, MARK, False)


@known_to_compilers
def _look(
    weight: Tensor | None, bias: Tensor | None, offset: float, remainder: bool, curve: str, dtype: torch.dtype
) -> bool:
    """Looks at these parameters and at those of all norms that are like it, and marks what cannot be relied on.

    The tracing compiler calls it, with the real tensors.
    """
    kind: Norm | Chain = Norm(False, 0.0, offset=offset, remainder=remainder)
    if curve:
        kind = Chain("", curve, "rows", 0.0, offset=offset)
    alike = _alike(weight, bias)
    _rely(kind, weight, bias, dtype, None)
    for module, parts in list(_modules.items()):
        own_weight, own_bias = (module._parameters.get(name) if name else None for name in parts[:2])
        if parts.offset == offset and _alike(own_weight, own_bias) == alike:
            _rely(kind, own_weight, own_bias, dtype, module)
    return True


def _alike(*parameters: Tensor | None) -> tuple[Any, ...]:
    """What norms have in common that one graph may be used for."""
    return tuple(None if p is None else (p.shape, p.dtype, p.device) for p in parameters)


def _rely(
    kind: Norm | Chain, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype, module: Module | None
) -> None:
    given = [parameter for parameter in (weight, bias) if parameter is not None]
    if any(not isinstance(parameter, Parameter) or is_fake(parameter) or parameter.is_meta for parameter in given):
        return
    watch_optimizers()
    known = _with_marks(kind, weight, bias, dtype)
    if module is not None and hasattr(module, "optiacts_described"):
        known.maker = _WeakMaker(weakref.ref(module))
    if known.versions != versions_of(weight, bias):
        known.look()
    if isinstance(known.graphs, Marks):
        known.graphs.relied = True


def _with_marks(kind: Norm | Chain, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Known:
    known = remembered(kind, weight, bias, dtype)
    if known.graphs is None:
        known.graphs = Marks((kind.offset, *_alike(weight, bias)))
        like = weight if weight is not None else bias
        assert like is not None
        if not hasattr(like, MARK):  # another kind of norm may have marked it
            setattr(like, MARK, False)
        known.poisoned = torch.zeros((), dtype=torch.bool, device=like.device)  # where captured graphs write to
    return known


@dataclass
class Marks:
    """The mark of one norm."""

    alike: tuple[Any, ...]  # the norms that are compiled anew together
    marked: bool = False
    relied: bool = False  # whether a graph was traced that may rely on it

    def learn(self, known: Known, bad: tuple[int, ...]) -> None:
        if not bad or self.marked:
            return
        self.mark(known)
        if self.relied:
            _marked_late[self.alike] += 1
            if _marked_late[self.alike] > _MOST_MARKS:
                for other in all_known():
                    if isinstance(other.graphs, Marks) and other.graphs.alike == self.alike:
                        other.graphs.mark(other)

    def mark(self, known: Known) -> None:
        self.marked = True
        self.write(known)

    def forget(self, known: Known) -> None:
        self.marked = False
        _marked_late.pop(self.alike, None)
        self.write(known)

    def write(self, known: Known) -> None:
        """Puts the mark where traced code asks for it."""
        parameter = known.first()
        if parameter is not None:
            setattr(parameter, MARK, self.marked)


_marked_late: defaultdict[tuple[Any, ...], int] = defaultdict(int)


@dataclass(frozen=True)
class _WeakMaker:
    """Names a module without keeping it."""

    module: weakref.ref[Module]

    def optiacts_described(self) -> str:
        module: Maker | None = self.module()  # type: ignore[assignment]
        return "a module that is gone" if module is None else module.optiacts_described()

    def optiacts_paths(self, model: Module) -> set[str]:
        module: Maker | None = self.module()  # type: ignore[assignment]
        return set() if module is None else module.optiacts_paths(model)


def loaded(module: Module) -> None:
    """After a state dict was loaded into ``module``: looks at its parameters, if graphs rely on them."""
    mine = {id(parameter) for parameter in module._parameters.values()}
    for known in all_known():
        if known.graphs is not None and known.is_there() and id(known.first()) in mine:
            known.look()


def check(
    kind: Norm | Chain,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """In a compiled graph: ``scale`` and ``shift``, of NaN if a channel is bad.

    That is noted, to be told after the next optimizer step.

    Raises:
        UnseenChangeError: on a CPU, at once, before anything is computed from it.
    """
    factor = scale if scale is not None else shift
    assert factor is not None
    if waits(factor.device):
        if not is_capturing(factor.device):
            collect()
        return guard(_known_by_address(kind, weight, bias, dtype), scale, shift, None, None)
    if backends.any_bad(scale, shift, kind, dtype):
        known = _known_by_address(kind, weight, bias, dtype)
        known.look()
        name = "" if known.maker is None else f" of {known.maker.optiacts_described()}"
        raise UnseenChangeError(
            f"optiacts: the weight or bias of a norm{name} was changed after this graph was compiled, and its output "
            "no longer tells its input. Nothing was computed. Call the model again, which compiles it anew, or call "
            "optiacts.norm_weights_changed() after such a change."
        )
    return scale, shift


def _known_by_address(kind: Norm | Chain, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Known:
    """What is remembered of these parameters: a graph may be given them under another Python object."""
    given = weight if weight is not None else bias
    assert given is not None
    place = given.data_ptr(), kind, dtype
    known = _places.get(place)
    if known is None or not _lies_at(known, given.data_ptr()):
        same = (k for k in all_known() if (k.kind, k.dtype) == (kind, dtype) and _lies_at(k, given.data_ptr()))
        known = next(same, None) or _with_marks(kind, weight, bias, dtype)
        _places[place] = known
    return known


_places: weakref.WeakValueDictionary[tuple[int, Norm | Chain, torch.dtype], Known] = weakref.WeakValueDictionary()


def _lies_at(known: Known, address: int) -> bool:
    parameter = known.first()
    return parameter is not None and known.graphs is not None and parameter.data_ptr() == address
