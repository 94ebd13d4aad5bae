"""Which channels of a norm its output does not tell, found out before the output is relied on.

On a CPU every forward looks at its weight and bias. On other devices that would make the host wait. What was found is
remembered there for each weight, and found out anew when it may have changed: at the first call, after every change
that PyTorch counts (``load_state_dict``), and after every step of any optimizer, by one look at all norms that is
copied to the host while it does other things. What FSDP has sharded by then is looked at when it is gathered again,
which makes the host wait once a step. A change that nobody sees (``weight.data.copy_`` of a moving average, a
replayed CUDA graph) does harm only if it makes a channel bad that is not known to be. Backward finds that, its
gradients are NaN, and the next forward or optimizer step raises ``UnseenChangeError``.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from optiacts import backends, recording
from optiacts._torch import is_capturing, is_fake, once, undisturbed
from optiacts.chains import Chain
from optiacts.norms import Bounds, Norm
from optiacts.overwritten import Maker


class UnseenChangeError(RuntimeError):
    """The weight or bias of a norm was changed unseen, so that its output no longer told its input.

    The gradients of that backward are NaN, or there are none. Change parameters between a backward and the next
    forward, and call ``optiacts.norm_weights_changed()`` after a change that PyTorch does not count.
    """


class Channels(NamedTuple):
    """Whether a norm may keep its output, which channels to rescue then, and where that is remembered."""

    keep_output: bool
    rescued: Tensor | None = None  # their numbers
    known: Known | None = None


_TELLS_ALL = Channels(True)


def look(
    kind: Norm | Chain,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    dtype: torch.dtype,
) -> Channels:
    """What there is to know before a forward with a ``dtype`` output; scale and shift are those of the parameters."""
    first = weight if weight is not None else bias
    if first is None or is_fake(first) or first.is_meta:
        return _TELLS_ALL
    if not waits(first.device):
        if not backends.any_bad(scale, shift, kind, dtype):
            return _TELLS_ALL
        bad = kind.bad(scale, shift, dtype)
        assert bad is not None
        numbers = bad.nonzero().squeeze(-1)
        if not len(numbers):  # what the quick look takes for bad may not be
            return _TELLS_ALL
        return Channels(len(numbers) <= kind.most_rescued(len(bad)), numbers)
    recording.impure()
    if not all(parameter is None or parameter.is_leaf for parameter in (weight, bias)):
        return Channels(False)  # new tensors each time: nothing to remember
    watch_optimizers()
    collect()
    known = remembered(kind, weight, bias, dtype)
    if known.distrusted:
        return Channels(False)
    if known.versions != versions_of(weight, bias):
        if is_capturing(first.device):
            return Channels(False)
        known.look()
        if known.poisoned is not None and known.poisoned.cpu():  # FSDP: the hook after a step could not look
            known.distrust()
            raise UnseenChangeError(explained([] if known.maker is None else [known.maker]))
    return Channels(True, known.rescued, known) if known.keep_output else Channels(False)


def guard(
    known: Known,
    scale: Tensor | None,
    shift: Tensor | None,
    rescued: Tensor | None,
    maker: Any,
    lost: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """In backward: ``scale`` and ``shift``, of NaN where a channel is bad that was not rescued, or ``lost`` holds.

    That is noted, to be told later. They may be overwritten: they are the backward's own.
    """
    recording.impure()
    factor = scale if scale is not None else shift
    assert factor is not None
    poisoned = known.noted(factor, maker)
    kernels = backends.select_guard(known.kind, scale, shift, rescued, lost)
    found: tuple[Tensor | None, Tensor | None] = kernels.guarded(
        scale, shift, rescued, known.kind, known.dtype, poisoned, lost
    )
    return found


def changed(known: Known | None, pairs: list[tuple[Tensor | None, Tensor | None]], maker: Any) -> Tensor | None:
    """In backward: whether (bool) a parameter is no longer what it was in the forward; None if it surely is.

    On a device that the host does not wait for it is noted, to be told later.

    Raises:
        UnseenChangeError: on a CPU, at once.
    """
    given = [(now, then) for now, then in pairs if now is not None and then is not None]
    differing = [_differs(now, then) for now, then in given if not is_fake(now) and not now.is_meta]
    if not differing:
        return None
    found = torch.stack(differing).any()
    if known is not None:
        known.note(found, maker)
        return found
    if not waits(found.device):
        if found:
            raise UnseenChangeError(explained([] if maker is None else [maker]))
        return None
    return found


def _differs(now: Tensor, then: Tensor) -> Tensor:
    now = now.detach()
    return ~((now == then) | (now.isnan() & then.isnan())).all()


def explained(makers: list[Maker]) -> str:
    names = ", ".join(maker.optiacts_described() for maker in makers)
    return (
        f"optiacts: the weight or bias of a norm{' of ' * bool(names)}{names} was changed in a way that PyTorch does "
        "not count, and its output no longer told its input. Or, of a norm in one step with its activation, inputs "
        "lay too far left for that, or a gate behind it fell below 2^-60: such a norm is left apart from now on. "
        "There are no right gradients of that backward. Throw that step away. Change parameters between a backward "
        "and the next forward, and call optiacts.norm_weights_changed() after a change that PyTorch does not count."
    )


def norm_weights_changed() -> None:
    """Tells that weights of norms were changed in a way that PyTorch does not count: ``weight.data.copy_(...)``.

    Needed on GPUs alone, after such a change and before the next forward: see ``UnseenChangeError``.
    """
    with _lock:
        _pending.clear()
        for key, known in list(_known.items()):
            if known.graphs is None:
                del _known[key]
            elif known.is_there():
                known.graphs.forget(known)
                known.distrusted = False
                known.look()


def waits(device: torch.device) -> bool:
    """Whether looking at a tensor's values makes the host wait for what is queued."""
    return device.type != "cpu"


@dataclass(eq=False)
class Known:
    """What is remembered of a norm, for whoever does not look at its weight and bias in every forward.

    Those are all on devices that the host does not wait for, and compiled graphs on any: see norm_graphs.py.
    """

    kind: Norm | Chain
    dtype: torch.dtype  # of the output
    weight: weakref.ref[Tensor] | None
    bias: weakref.ref[Tensor] | None
    versions: tuple[int, ...] = ()
    keep_output: bool = True
    rescued: Tensor | None = None
    numbers: tuple[int, ...] = ()  # the rescued channels, on the host
    poisoned: Tensor | None = None  # bool: whether a backward met a bad channel that was not rescued
    maker: Maker | None = None
    distrusted: bool = False  # a chain whose gradients were NaN once: norm and activation go their own ways
    graphs: Graphs | None = None  # what compiled graphs make of it, if there are any
    _bounds: Bounds | None = None

    def parameters(self) -> tuple[Tensor | None, Tensor | None]:
        """The weight and the bias, as far as they are still there."""
        weight, bias = self.weight, self.bias
        return None if weight is None else weight(), None if bias is None else bias()

    def of(self, weight: Tensor | None, bias: Tensor | None) -> bool:
        """Whether this is about these very tensors: a number of ``id`` is used again."""
        mine = self.parameters()
        return mine[0] is weight and mine[1] is bias

    def first(self) -> Tensor | None:
        """The weight, or the bias where there is no weight."""
        weight, bias = self.parameters()
        return bias if self.weight is None else weight

    def is_there(self) -> bool:
        """Whether nothing of it is gone."""
        weight, bias = self.parameters()
        return (weight is None) == (self.weight is None) and (bias is None) == (self.bias is None)

    @undisturbed
    def look(self) -> None:
        """Looks at the weight and the bias, and waits for what it sees.

        Checkpointing counts what a forward saves and runs, and this runs in the first alone.
        """
        self.learn(self.bad().cpu(), versions_of(*self.parameters()))

    def bad(self) -> Tensor:
        weight, bias = self.parameters()
        bad = self.kind.bad(self.kind.scale(weight), self.kind.shift(bias), self.dtype)
        assert bad is not None
        return bad

    def poison(self) -> Tensor:
        """Whether (bool, on the device) a backward has met a bad channel that was not rescued."""
        (like,) = [p for p in self.parameters() if p is not None][:1]
        return like.new_zeros((), dtype=torch.bool) if self.poisoned is None else self.poisoned

    def gathered(self) -> bool:
        """Whether the parameters are there only while they are used: FSDP frees them in between."""
        return any(p is not None and p.numel() and not p.untyped_storage().nbytes() for p in self.parameters())

    def bounds(self, channels: int) -> Bounds:
        """What ``bad`` goes by, for kernels."""
        if self._bounds is None:
            self._bounds = self.kind.bounds(self.dtype, channels)
        return self._bounds

    def noted(self, like: Tensor, maker: Maker | None) -> Tensor:
        """``poison``, into which a backward on the device of ``like`` writes what it meets."""
        if self.poisoned is None:
            self.poisoned = like.new_zeros((), dtype=torch.bool)
        self.maker = maker or self.maker
        return self.poisoned

    def note(self, poison: Tensor, maker: Maker | None) -> None:
        """Remembers, without a look, whether a backward has met what makes its gradients NaN."""
        if self.poisoned is None:
            self.poisoned = poison.clone()
        else:
            self.poisoned.logical_or_(poison)  # in place, for what a CUDA graph replays goes there
        self.maker = maker or self.maker

    def distrust(self) -> None:
        """After a backward was poisoned, which is told now."""
        assert self.poisoned is not None
        self.poisoned.zero_()
        self.distrusted = isinstance(self.kind, Chain)

    def learn(self, bad: Tensor, versions: tuple[int, ...]) -> None:
        """From which channels are bad, on the host.

        It goes back to keeping the output only with half as many bad channels as led away from it.
        """
        most = self.kind.most_rescued(len(bad))
        numbers = tuple(bad.nonzero().flatten().tolist())
        if self.graphs is not None:
            self.graphs.learn(self, numbers)
        self.keep_output = len(numbers) <= (most if self.keep_output else most // 2)
        self.versions = versions
        if numbers != self.numbers:
            self.numbers = numbers
            (like,) = [p for p in self.parameters() if p is not None][:1]
            self.rescued = torch.tensor(numbers, device=like.device) if numbers and self.keep_output else None


class Graphs(Protocol):
    """Who has compiled graphs changed."""

    def learn(self, known: Known, bad: tuple[int, ...]) -> None:
        """Which channels of a norm are bad now."""

    def forget(self, known: Known) -> None:
        """Forgets what it was."""


class _Seen(NamedTuple):
    """A look at several norms of one kind, on its way to the host."""

    members: list[tuple[Known, tuple[int, ...]]]  # with the versions of weight and bias
    bad: Tensor  # a row for each; the last column tells whether its backward was poisoned
    event: Any  # after which the copy is there; None if it is


_lock = threading.RLock()
_known: dict[tuple[Any, ...], Known] = {}
_pending: list[_Seen] = []


@once
def watch_optimizers() -> None:
    register_optimizer_step_post_hook(_after_step)


def remembered(kind: Norm | Chain, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Known:
    key = kind, dtype, id(weight), id(bias)
    known = _known.get(key)
    if known is None or not known.of(weight, bias):
        with _lock:
            known = _known[key] = Known(kind, dtype, weight=_reference(weight), bias=_reference(bias))
    return known


def all_known() -> list[Known]:
    """All that is remembered."""
    with _lock:
        return list(_known.values())


def _reference(parameter: Tensor | None) -> weakref.ref[Tensor] | None:
    return None if parameter is None else weakref.ref(parameter)


def versions_of(weight: Tensor | None, bias: Tensor | None) -> tuple[int, ...]:
    return tuple(parameter._version for parameter in (weight, bias) if parameter is not None)


@undisturbed
def _after_step(*_: Any) -> None:
    """Looks at all norms and starts to copy what it sees to the host, which reads it at the next forward.

    The step may be that of another model, on fake tensors even.
    """
    groups: dict[Any, list[tuple[Known, Tensor | None, Tensor | None]]] = defaultdict(list)
    with _lock:
        for key, known in list(_known.items()):
            weight, bias = known.parameters()
            if not known.is_there():
                del _known[key]
                continue
            (like,) = [parameter for parameter in (weight, bias) if parameter is not None][:1]
            if is_fake(like) or like.is_meta:
                continue
            if known.gathered():
                known.versions = ()  # to be found out when they are there again
                continue
            group = known.kind, known.dtype, like.device, like.dtype, like.shape, weight is None, bias is None
            groups[group].append((known, weight, bias))
    for (kind, dtype, device, *_), members in groups.items():
        if is_capturing(device):
            continue
        scales = [kind.scale(weight) for _, weight, _ in members]
        shifts = [kind.shift(bias) for _, _, bias in members]
        bad = kind.bad(_stacked(scales), _stacked(shifts), dtype)
        assert bad is not None
        poisoned = torch.stack([known.poison() for known, _, _ in members])
        seen = torch.cat([bad, poisoned.unsqueeze(-1)], dim=-1)
        host, event = _to_host(seen)
        with _lock:
            _pending.append(_Seen([(known, versions_of(w, b)) for known, w, b in members], host, event))
    if any(known.graphs is not None for members in groups.values() for known, *_ in members):
        collect()  # compilers' guards read what is marked: there is no later place to wait


def _stacked(rows: list[Tensor | None]) -> Tensor | None:
    given = [row for row in rows if row is not None]
    return torch.stack(given) if given else None


def _to_host(tensor: Tensor) -> tuple[Tensor, Any]:
    """A copy on the host, and the event after which it is complete."""
    if tensor.device.type != "cuda":
        return tensor.cpu(), None
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def collect() -> None:
    """Learns what the last looks have seen."""
    if not _pending or any(seen.event is not None and is_capturing(torch.device("cuda")) for seen in _pending):
        return
    with _lock:
        looks = _pending[:]
        _pending.clear()
    poisoned: list[Known] = []
    for seen in looks:
        if seen.event is not None:
            seen.event.synchronize()
        for (known, versions), row in zip(seen.members, seen.bad, strict=True):
            if row[-1]:
                poisoned.append(known)
                known.distrust()
            known.learn(row[:-1], versions)
    if poisoned:
        raise UnseenChangeError(explained([known.maker for known in poisoned if known.maker is not None]))
