"""Makes a report: traces one forward of the model as it is, and one after each stage of conversion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from optiacts.held.fake import LikeCuda, autocasting, fake_copy, mode_of, one_sequence_per_row
from optiacts.held.sharing import ActivationSite, sites
from optiacts.held.trace import Trace
from optiacts.reporting import conversion, kinds
from optiacts.reporting.data import MemoryReport, Stage
from optiacts.reporting.errors import ReportError
from optiacts.reporting.known import trace
from optiacts.reporting.optimizers import OPTIMIZERS, Cost, cost
from optiacts.reporting.peak import Peak, peak
from optiacts.reporting.progress import Progress
from optiacts.reporting.setting import brief
from optiacts.reporting.sizes import memory_of
from optiacts.reporting.states import states
from optiacts.reporting.step import Step, step

NOW = "now"


def report(
    model: torch.nn.Module,
    *inputs: Any,
    optimizer: str = "adamw",
    gpu_memory: int | float | str | None = None,
    fake: bool = True,
    like_cuda: bool = False,
    autocast: torch.dtype | None = None,
    name: str | None = None,
    setting: dict[str, str] | None = None,
    progress: Progress | None = None,
    **keyword_inputs: Any,
) -> MemoryReport:
    """How much memory a training step of ``model`` holds, and how much less after ``optiacts.convert``.

    Counted are the saved bytes: the distinct storages that autograd holds after ``model(*inputs,
    **keyword_inputs)``, parameters and buffers left out; and the peak of a step: the most that is allocated at any
    moment of forward, loss, backward and optimizer step. Converted is what pays (see
    ``optiacts.reporting.sharing``). ``model`` is left as it was.

    Args:
        model: the model as it is trained: in training mode, frozen where it is frozen; real or fake.
        inputs, keyword_inputs: its inputs for one step.
        optimizer: one of ``optiacts.reporting.states.OPTIMIZERS``, for the size of its state.
        gpu_memory: of the card, to tell the largest batch that fits: "24GB", 24 (GiB), "rtx-4090", or bytes.
        fake: run on fake copies, which takes no memory and changes no state. False runs the forward of the model
            itself, for forwards that need the values of tensors; then the peak is not known.
        like_cuda: make a forward on CPU save what it would save on CUDA (dropout masks, attention dropout), and
            count the workspaces of CUDA's kernels and of its multi-tensor optimizers.
        autocast: the dtype of ``torch.autocast`` that the step runs under; there is a stage more then.
        name, setting: carried into the report.
        progress: called with what is done next, and the fraction that is done already.

    Returns:
        ``MemoryReport``: the stages, the activations and what each gains, the states; ``print`` shows a table.
        ``ReportError`` (a ``ValueError``) says what is wrong with an argument.
    """
    say = progress or (lambda what, done: None)
    card = _checked(model, optimizer, gpu_memory, autocast)
    if fake:
        model, inputs, keyword_inputs = fake_copy(model, inputs, keyword_inputs)
    spent = cost((p for p in model.parameters() if p.requires_grad), optimizer, like_cuda)
    run = _Runner(model, inputs, keyword_inputs, like_cuda, autocast, spent, in_mode=fake)

    say("tracing the model as it is", 0.0)
    now, traced = run.stage(NOW)
    found: tuple[ActivationSite, ...] = sites(traced)
    del traced
    stages = [now]
    try:
        for number, (stage, how) in enumerate(conversion.CONVERSIONS.items(), 1):
            if how.shows(now.kinds, autocast is not None):
                say(f"tracing it with its {stage}", number / (1 + len(conversion.CONVERSIONS)))
                conversion.convert_stage(model, stage, found, like_cuda)
                after = run.stage(stage)[0]
                stages += [] if how.only_if_less and after.bytes >= stages[-1].bytes else [after]
    finally:
        conversion.revert(model)
    return MemoryReport(
        name=name or type(model).__name__,
        setting=setting or {},
        states=states(model, spent),
        stages=tuple(stages),
        sites=found,
        gpu_memory=card,
    )


def peak_of(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    optimizer: str = "adamw",
    like_cuda: bool = False,
    autocast: torch.dtype | None = None,
) -> Peak:
    """The peak of a step of ``model`` as it is: a part of what ``report`` tells, in a fraction of the time."""
    model, keywords = fake_copy(model, dict(inputs))
    spent = cost((p for p in model.parameters() if p.requires_grad), optimizer, like_cuda)
    found = _Runner(model, (), keywords, like_cuda, autocast, spent, in_mode=True).peak(doubled=False)
    assert found is not None
    return found


def _checked(model: Any, optimizer: Any, gpu_memory: Any, autocast: Any) -> int | None:
    """The bytes of the card; ``ReportError`` for an argument that is not what it should be."""
    if not isinstance(model, torch.nn.Module):
        raise ReportError(f"model must be a torch.nn.Module; got {model!r:.80}")
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise ReportError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {optimizer!r}")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ReportError(f"autocast must be torch.bfloat16, torch.float16 or None; got {autocast!r}")
    return None if gpu_memory is None else memory_of(gpu_memory)


class _Runner:
    """Runs the model on its inputs, and on twice as many samples: what autograd holds, and the peak of a step."""

    def __init__(
        self,
        model: Any,
        inputs: tuple[Any, ...],
        keywords: Any,
        like_cuda: bool,
        autocast: torch.dtype | None,
        spent: Cost,
        in_mode: bool,
    ) -> None:
        self._model, self._inputs, self._keywords = model, inputs, keywords
        self._like_cuda, self._autocast, self._cost = like_cuda, autocast, spent
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
        layers = dict(by_layer.most_common())
        return Stage(name, traced.bytes, dict(by_kind), layers, self._batch, self.peak()), traced

    def peak(self, doubled: bool = True) -> Peak | None:
        """Every moment has so many bytes, and so many more for each sample; a second batch size tells how many."""
        if self._mode is None:
            return None
        once = self._step(self._inputs, self._keywords)
        twice = None
        if doubled and self._batch is not None:
            with self._context(), suppress(ReportError):
                twice = self._step(*_doubled((self._inputs, self._keywords), self._batch))
        return peak(once, self._cost, twice, self._batch)

    def _step(self, inputs: Any, keywords: Any) -> Step:
        def run() -> Any:
            return self._model(*inputs, **keywords)

        def under_autocast() -> Any:
            return autocasting(self._model, (inputs, keywords), self._autocast)

        with self._context(autocast=False):
            return self._tried(
                "step", lambda: step(self._model, run, (inputs, keywords), under_autocast, self._like_cuda)
            )

    def _run(self, how: Callable[..., Any], inputs: Any, keywords: Any) -> Any:
        with self._context():
            return self._tried("forward", lambda: how(self._model, *inputs, **keywords))

    def _tried(self, what: str, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except ReportError:
            raise
        except Exception as error:
            raise ReportError(
                f"the {what} failed: {brief(error)}. Check that the inputs fit the model; a {what} that needs the "
                "values of tensors cannot run on fake ones"
            ) from error

    def _context(self, autocast: bool = True) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.enable_grad())
        if autocast:
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
