"""Makes a report: traces one forward of the model as it is, and one after each stage of conversion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from optiacts.held.fake import LikeCuda, autocasting, fake_copy, mode_of, one_sequence_per_row
from optiacts.held.memory import saved_memory
from optiacts.held.sharing import ActivationSite, sites
from optiacts.held.trace import Trace
from optiacts.reporting import conversion, kinds
from optiacts.reporting.data import MemoryReport, Stage
from optiacts.reporting.errors import ReportError
from optiacts.reporting.known import trace
from optiacts.reporting.states import states

NOW = "now"


def report(
    model: torch.nn.Module,
    *inputs: Any,
    optimizer: str = "adamw",
    gpu_memory: int | None = None,
    fake: bool = True,
    like_cuda: bool = False,
    autocast: torch.dtype | None = None,
    name: str | None = None,
    setting: dict[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
    **keyword_inputs: Any,
) -> MemoryReport:
    """How much memory a training step of ``model`` holds, and how much less after ``optiacts.convert``.

    Counted are the saved bytes: the distinct storages that autograd holds after ``model(*inputs,
    **keyword_inputs)``, parameters and buffers left out. The peak of a step is higher by what backward works
    with at the time. Converted is what pays (see ``optiacts.reporting.sharing``). ``model`` is left as it was.

    Args:
        model: the model as it is trained: in training mode, frozen where it is frozen; real or fake.
        inputs, keyword_inputs: its inputs for one step.
        optimizer: one of ``optiacts.reporting.states.OPTIMIZERS``, for the size of its state.
        gpu_memory: bytes of the card, to tell the largest batch that fits.
        fake: run on fake copies, which takes no memory and changes no state. False runs the model itself,
            for forwards that need the values of tensors.
        like_cuda: make a forward on CPU save what it would save on CUDA (dropout masks, attention dropout).
        autocast: the dtype of ``torch.autocast`` that the step runs under; there is a stage more then.
        name, setting: carried into the report.
        progress: called with what is done next.

    Returns:
        ``MemoryReport``: the stages, the activations and what each gains, the states; ``print`` shows a table.
    """
    say = progress or (lambda what: None)
    if fake:
        model, inputs, keyword_inputs = fake_copy(model, inputs, keyword_inputs)
    run = _Runner(model, inputs, keyword_inputs, like_cuda, autocast, in_mode=fake)

    say("tracing the model as it is")
    now, traced = run.stage(NOW)
    found: tuple[ActivationSite, ...] = sites(traced)
    del traced
    stages = [now]
    try:
        for stage, how in conversion.CONVERSIONS.items():
            if how.shows(now.kinds, autocast is not None):
                say(f"tracing it with its {stage}")
                conversion.convert_stage(model, stage, found)
                after = run.stage(stage)[0]
                stages += [] if how.only_if_less and after.bytes >= stages[-1].bytes else [after]
    finally:
        conversion.revert(model)
    return MemoryReport(
        name=name or type(model).__name__,
        setting=setting or {},
        states=states(model, optimizer),
        stages=tuple(stages),
        sites=found,
        gpu_memory=gpu_memory,
    )


class _Runner:
    """Runs the model on its inputs, and on twice as many samples, and sorts what autograd holds."""

    def __init__(
        self,
        model: Any,
        inputs: tuple[Any, ...],
        keywords: Any,
        like_cuda: bool,
        autocast: torch.dtype | None,
        in_mode: bool,
    ) -> None:
        self._model, self._inputs, self._keywords = model, inputs, keywords
        self._like_cuda, self._autocast = like_cuda, autocast
        self._mode = mode_of(model, (inputs, keywords)) if in_mode else None
        self._batch = _batch((inputs, keywords))

    def stage(self, name: str) -> tuple[Stage, Trace]:
        traced = self._run(trace, self._inputs, self._keywords)
        by_kind = Counter(dict.fromkeys(kinds.KINDS, 0))
        by_layer: Counter[str] = Counter()
        charged = kinds.charges(traced)
        for key, storage in traced.storages.items():
            by_kind[charged[key].kind] += storage.nbytes
            by_layer[charged[key].layer] += storage.nbytes
        per_sample = self._per_sample(traced.bytes)
        return Stage(name, traced.bytes, dict(by_kind), dict(by_layer.most_common()), per_sample, self._batch), traced

    def _per_sample(self, nbytes: int) -> float | None:
        """The saved bytes are a constant plus so much a sample; a second batch size tells how much."""
        if self._batch is None:
            return None
        try:
            with self._context():
                inputs, keywords = _doubled((self._inputs, self._keywords), self._batch)
            twice = self._run(saved_memory, inputs, keywords).bytes
        except ReportError:
            return None
        return (twice - nbytes) / self._batch

    def _run(self, how: Callable[..., Any], inputs: Any, keywords: Any) -> Any:
        with self._context():
            try:
                return how(self._model, *inputs, **keywords)
            except Exception as error:
                raise ReportError(
                    f"the forward failed: {type(error).__name__}: {str(error).strip()[:300]}. Check that the inputs "
                    "fit the model; a forward that needs the values of tensors cannot run on fake ones"
                ) from error

    def _context(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.enable_grad())
        stack.enter_context(autocasting(self._model, (self._inputs, self._keywords), self._autocast))
        if self._mode is not None:
            stack.enter_context(self._mode)
            stack.enter_context(one_sequence_per_row())
        if self._like_cuda:
            stack.enter_context(LikeCuda())
        return stack


def _batch(values: Any) -> int | None:
    """The first dimension of the first input."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    return tensors[0].shape[0] if tensors and tensors[0].shape[0] > 0 else None


def _doubled(values: Any, batch: int) -> Any:
    """``values`` with twice as many samples."""

    def double(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != batch:
            return value
        return torch.cat((value, value)).detach().requires_grad_(value.requires_grad)

    return tree_map(double, values)
