"""Runs a model on its inputs, as it is trained: what autograd holds, and a whole step."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode
from torch.utils._pytree import tree_leaves, tree_map

from optiacts.conversion.sites import curve_of
from optiacts.held.activations import CurveOf
from optiacts.held.fake import Faked, LikeCuda, autocasting, mode_of, one_sequence_per_row, uncompiled, unlogged
from optiacts.held.memory import storage_key
from optiacts.held.sharing import ActivationSite, sites
from optiacts.held.trace import Trace
from optiacts.reporting import kinds
from optiacts.reporting.changes import checkpointed, layers_of
from optiacts.reporting.choices import Choice, Choices
from optiacts.reporting.errors import ReportError
from optiacts.reporting.known import trace
from optiacts.reporting.lora import Lora
from optiacts.reporting.setting import brief
from optiacts.reporting.step import Step, step

_NAMED = 4  # inputs


@dataclass(frozen=True)
class Ran:
    """One run: the bytes held by kind and by the class of the layer, and what was recorded, if anything was."""

    kinds: Counter[str]
    layers: Counter[str]
    step: Step | None


class Runner:
    """Runs ``model`` on its inputs; inside the mode of its fake tensors if ``in_mode``, whole steps if ``peaks``.

    ``place``: makes a copy of the model what one rank has of it, which is run in its place.
    """

    def __init__(
        self,
        model: Any,
        inputs: tuple[Any, ...],
        keywords: Any,
        like_cuda: bool,
        autocast: torch.dtype | None,
        in_mode: bool = True,
        peaks: bool = True,
        checkpoint: int = 0,
        place: Callable[[torch.nn.Module], None] | None = None,
    ) -> None:
        self.model, self._inputs, self._keywords = model, inputs, keywords
        self._like_cuda, self._autocast = like_cuda, autocast
        self._checkpoint = checkpoint
        self._mode = mode_of(model, (inputs, keywords)) if in_mode else None
        self._peaks = peaks and in_mode
        self._place = place
        self.batch = _batch((inputs, keywords))

    def traced(self) -> Trace:
        """One forward, without checkpointing."""
        return self._run(trace, self._inputs, self._keywords)

    def ran(self, backward: bool = True) -> tuple[Ran, Trace]:
        """The model as it stands: a step, or its forward alone; on real tensors nothing but what is held then."""
        if self._place is not None:
            return self.placed().ran(backward)
        with self._checkpointed():
            watched = None if self._checkpoint else curve_of  # checkpoints hang on no output
            once = None
            if self._peaks:
                once = self._step(self._inputs, self._keywords, traced=watched, backward=backward)
            traced = once.trace if once is not None and once.trace is not None and once.told else self.traced()
        by_kind = Counter(dict.fromkeys(kinds.KINDS, 0))
        by_layer: Counter[str] = Counter()
        charged = kinds.charges(traced)
        for key, storage in traced.storages.items():
            by_kind[charged[key].kind] += storage.nbytes
            by_layer[charged[key].layer] += storage.nbytes
        if self._checkpoint and once is not None:  # what those keep is not among the saved tensors
            inputs = {storage_key(t) for t in tree_leaves((self._inputs, self._keywords)) if isinstance(t, Tensor)}
            seen = sum(s.nbytes for key, s in traced.storages.items() if key not in inputs)
            by_kind[kinds.CHECKPOINTS] += once.held_bytes - seen
            by_layer["(checkpoints)"] += once.held_bytes - seen
        return Ran(by_kind, by_layer, once), traced

    def sites(self, traced: Trace) -> tuple[ActivationSite, ...]:
        """The activations in a forward of the model as it is, neither checkpointed nor placed on a rank."""
        return sites(self.traced() if self._checkpoint or self._place is not None else traced)

    def placed(self) -> Runner:
        """The same of what one rank has of the model as it stands."""
        if self._place is None or self._mode is None:
            return self
        with self._mode, FakeCopyMode(self._mode):
            model = copy.deepcopy(self.model)
        self._place(model)
        how = self._like_cuda, self._autocast, True, self._peaks, self._checkpoint
        return Runner(model, self._inputs, self._keywords, *how)

    def _checkpointed(self) -> AbstractContextManager[Any]:
        layers = layers_of(self.model) if self._checkpoint else []
        return checkpointed(layers[:: self._checkpoint or 1], self._functions)

    def step(self) -> Step:
        """One step."""
        with self._checkpointed():
            return self._step(self._inputs, self._keywords)

    def choices(
        self,
        found: tuple[ActivationSite, ...],
        optimizer: str,
        lora: Lora | None = None,
        keywords: Any = None,
    ) -> Choices | None:
        """What one may choose from; None where the inputs have no batch."""
        keywords = self._keywords if keywords is None else keywords
        mode, batch = self._mode, self.batch
        if mode is None or batch is None:
            return None

        def run(model: Any, forward: Callable[..., Any], times: int) -> Step:
            with self._context():
                inputs, given = _repeated((self._inputs, keywords), batch, times)
            return self._step(inputs, given, model, lambda: forward(inputs, given))

        cuda, again = self._like_cuda, self._functions
        return Choices(self.model, self._inputs, keywords, batch, run, found, optimizer, cuda, mode, again, lora=lora)

    def longest(self, found: tuple[ActivationSite, ...], optimizer: str, card: int) -> int | None:
        """The most tokens of one sample with which the model as it is fits; None if that is not known, or none do."""
        ids = self._keywords.get("input_ids")
        if ids is None:
            return None
        low, high = 0, ids.shape[1]  # fits; does not
        while high - low > max(1, ids.shape[1] // 64):
            tokens = (low + high) // 2
            with self._context():
                fewer = {k: v[:, :tokens].contiguous() for k, v in self._keywords.items() if v.shape == ids.shape}
            choices = self.choices(found, optimizer, keywords={**self._keywords, **fewer})
            assert choices is not None
            low, high = (tokens, high) if choices.peak(Choice(optimizer)) <= card else (low, tokens)
        return low or None

    def _step(
        self,
        inputs: Any,
        keywords: Any,
        model: Any = None,
        run: Callable[[], Any] | None = None,
        traced: CurveOf | None = None,
        backward: bool = True,
    ) -> Step:
        model = self.model if model is None else model

        def forward() -> Any:
            return self._tried("forward", run or (lambda: model(*inputs, **keywords)))

        def under_autocast() -> Any:
            return autocasting(model, (inputs, keywords), self._autocast)

        with self._context(autocast=False):
            around, cuda = under_autocast, self._like_cuda
            return self._tried(
                "step", lambda: step(model, forward, (inputs, keywords), around, cuda, traced, backward)
            )

    def _run(self, how: Callable[..., Any], inputs: Any, keywords: Any) -> Any:
        with self._context():
            return self._tried("forward", lambda: how(self.model, *inputs, **keywords))

    def _tried(self, what: str, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except ReportError:
            raise
        except Exception as error:
            raise ReportError(
                f"the {what} failed: {brief(error)}. Check that the inputs{_shapes((self._inputs, self._keywords))} "
                f"fit the model; a {what} that needs the values of tensors cannot run on fake ones"
            ) from error

    def _context(self, autocast: bool = True) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.enable_grad())
        if autocast:
            stack.enter_context(autocasting(self.model, (self._inputs, self._keywords), self._autocast))
        if self._mode is not None:
            stack.enter_context(self._mode)
            stack.enter_context(one_sequence_per_row())
            stack.enter_context(uncompiled(self.model))
            stack.enter_context(unlogged())
        stack.enter_context(self._functions())
        return stack

    def _functions(self) -> AbstractContextManager[Any]:
        """The functions that are not PyTorch's own while it runs."""
        if self._like_cuda:
            return LikeCuda()
        return Faked() if self._mode is not None else nullcontext()


def _shapes(values: Any) -> str:
    """The tensors among them in words; nothing where there are none, or many."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    words = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensors)
    return f" ({words})" if 0 < len(tensors) <= _NAMED else ""


def _batch(values: Any) -> int | None:
    """The first dimension of the first input."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    return tensors[0].shape[0] if tensors and tensors[0].shape[0] > 0 else None


def _repeated(values: Any, batch: int, times: int) -> Any:
    """``values`` with so many times as many samples."""

    def repeat(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != batch:
            return value
        return torch.cat([value] * times).detach().requires_grad_(value.requires_grad)

    return tree_map(repeat, values) if times > 1 else values
