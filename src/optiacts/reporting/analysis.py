"""Makes a report: traces one forward of the model as it is, and one after each stage of conversion."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from optiacts.conversion.sites import curve_of
from optiacts.held.activations import CurveOf
from optiacts.held.fake import LikeCuda, autocasting, fake_copy, mode_of, one_sequence_per_row
from optiacts.held.memory import storage_key
from optiacts.held.sharing import ActivationSite, sites
from optiacts.held.trace import Trace
from optiacts.reporting import conversion, kinds
from optiacts.reporting.changes import checkpointed, layers_of
from optiacts.reporting.choices import Choice, Choices, Option
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
CASTS = "casts shared"


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
    choices: bool | Collection[str] | None = None,
    checkpoint: int = 0,
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
        choices: run what people choose from to make it fit: checkpointing, a chunked loss, LoRA, an 8-bit optimizer,
            with OptiActs and without; by default if ``gpu_memory`` is given. Or those of them that are named, such
            as ``("OptiActs", "checkpointing")``.
        checkpoint: every so many-th of the repeated layers is checkpointed; none if 0.
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
    if checkpoint and not fake:
        raise ReportError("checkpoint: only on fake tensors, since what it holds is not seen among saved tensors")
    run = _Runner(model, inputs, keyword_inputs, like_cuda, autocast, spent, fake, checkpoint)

    say("tracing the model as it is", 0.0)
    now, found = run.now()
    stages = [now]
    try:
        for number, (stage, how) in enumerate(conversion.CONVERSIONS.items(), 1):
            if how.shows(now.kinds, autocast is not None):
                say(f"tracing it with its {stage}", number / (1 + len(conversion.CONVERSIONS)))
                conversion.convert_stage(model, stage, found)
                after = run.stage(stage)
                stages += [] if how.only_if_less and after.bytes >= stages[-1].bytes else [after]
    finally:
        conversion.revert(model)
    options: tuple[Option, ...] = ()
    partial: tuple[Option, ...] = ()
    longest = None
    if (card is not None if choices is None else choices is not False) and not checkpoint:
        only = choices if isinstance(choices, Collection) else None
        options, partial, longest = _options(run, found, optimizer, card, stages, only, say)
        stages = [_growing(stage, options) for stage in stages]
    return MemoryReport(
        name=name or type(model).__name__,
        setting=setting or {},
        states=states(model, spent),
        stages=tuple(stages),
        sites=found,
        gpu_memory=card,
        options=options,
        partial=partial,
        longest=longest,
    )


def _options(
    run: _Runner,
    found: tuple[ActivationSite, ...],
    optimizer: str,
    card: int | None,
    stages: list[Stage],
    only: Collection[str] | None,
    say: Progress,
) -> tuple[tuple[Option, ...], tuple[Option, ...], int | None]:
    """What people choose from; with some layers checkpointed; the most tokens that fit. Empty if it is not known."""
    choices = run.choices(found, optimizer)
    if choices is None:
        return (), (), None
    options: list[Option] = []
    asked = [choice for choice in choices.all() if only is None or choice.words in (NOW, *only)]
    for number, choice in enumerate(asked):
        say(f"what it takes with {choice.words}", number / len(asked))
        with suppress(ReportError, ValueError):  # where a choice is not for this model
            option = choices.option(choice)
            whole = _stage_of(choice, stages)
            if whole is not None and whole.peak is not None and option.peak != whole.peak.bytes:
                choices.fold = False  # its layers are not as equal as they look
                option = choices.option(choice)
            options.append(option)
    if not options or options[0].choice != asked[0]:
        return (), (), None
    partial: list[Option] = []
    longest = None
    if card is not None and options[0].peak > card:
        for ours in (False, True):
            alike = [o for o in options if o.choice in (choices.plain(ours), choices.plain(ours, choices.layers))]
            if len(alike) == 2 and alike[0].peak > card >= alike[1].peak:
                say("how many layers to checkpoint", 1.0)
                fewest = choices.fewest_checkpoints(alike[0], alike[1], card)
                partial += [fewest] if fewest is not None else []
        if options[0].largest_batch(card) == 0:
            say("the longest sample that fits", 1.0)
            longest = run.longest(found, optimizer, card)
    return tuple(options), tuple(partial), longest


def _stage_of(choice: Choice, stages: list[Stage]) -> Stage | None:
    """The stage that is this choice, if one is: as it is, and the last of conversion."""
    if choice.optiacts:
        return stages[-1] if choice.words == "OptiActs" and stages[-1].name != CASTS else None
    return stages[0] if choice.words == "now" else None


def _growing(stage: Stage, options: tuple[Option, ...]) -> Stage:
    """With how its peak grows, where an option has it."""
    for option in options:
        if stage.peak is not None and option.peak == stage.peak.bytes and option.choice.words in ("now", "OptiActs"):
            return dataclasses.replace(stage, peak=dataclasses.replace(stage.peak, growth=option.growth))
    return stage


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
    return _Runner(model, (), keywords, like_cuda, autocast, spent, in_mode=True).peak()


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
    """Runs the model on its inputs: what autograd holds, and the peak of a step."""

    def __init__(
        self,
        model: Any,
        inputs: tuple[Any, ...],
        keywords: Any,
        like_cuda: bool,
        autocast: torch.dtype | None,
        spent: Cost,
        in_mode: bool,
        checkpoint: int = 0,
    ) -> None:
        self._model, self._inputs, self._keywords = model, inputs, keywords
        self._like_cuda, self._autocast, self._cost = like_cuda, autocast, spent
        self._checkpoint = checkpoint
        self._mode = mode_of(model, (inputs, keywords)) if in_mode else None
        self._batch = _batch((inputs, keywords))

    def traced(self) -> Trace:
        """One forward, without checkpointing."""
        return self._run(trace, self._inputs, self._keywords)

    def now(self) -> tuple[Stage, tuple[ActivationSite, ...]]:
        """The model as it is, and its activations."""
        stage, traced = self._stage(NOW)
        return stage, sites(self.traced() if self._checkpoint else traced)

    def stage(self, name: str) -> Stage:
        """What it holds, and its peak."""
        return self._stage(name)[0]

    def _stage(self, name: str) -> tuple[Stage, Trace]:
        by_kind = Counter(dict.fromkeys(kinds.KINDS, 0))
        by_layer: Counter[str] = Counter()
        with self._checkpointed():
            once = None if self._mode is None else self._step(self._inputs, self._keywords, traced=curve_of)
            traced = once.trace if once is not None and once.trace is not None else self.traced()
            if once is not None and not self._checkpoint and not once.told:
                traced = self.traced()
        charged = kinds.charges(traced)
        for key, storage in traced.storages.items():
            by_kind[charged[key].kind] += storage.nbytes
            by_layer[charged[key].layer] += storage.nbytes
        held = traced.bytes
        if self._checkpoint and once is not None:  # what those keep is not among the saved tensors
            inputs = {storage_key(t) for t in tree_leaves((self._inputs, self._keywords)) if isinstance(t, Tensor)}
            seen = sum(s.nbytes for key, s in traced.storages.items() if key not in inputs)
            kept = once.held_bytes - seen
            by_kind[kinds.CHECKPOINTS] += kept
            by_layer["(checkpoints)"] += kept
            held += kept
        found = None if once is None else peak(once, self._cost)
        stage = Stage(name, held, dict(by_kind), dict(by_layer.most_common()), self._batch, found)
        return stage, traced

    def _checkpointed(self) -> AbstractContextManager[Any]:
        layers = layers_of(self._model) if self._checkpoint else []
        return checkpointed(layers[:: self._checkpoint or 1], LikeCuda if self._like_cuda else nullcontext)

    def peak(self) -> Peak:
        """Of a step."""
        with self._checkpointed():
            return peak(self._step(self._inputs, self._keywords), self._cost)

    def choices(self, found: tuple[ActivationSite, ...], optimizer: str, keywords: Any = None) -> Choices | None:
        """What one may choose from; None where the inputs have no batch."""
        keywords = self._keywords if keywords is None else keywords
        mode, batch = self._mode, self._batch
        if mode is None or batch is None:
            return None

        def run(model: Any, forward: Callable[..., Any], times: int) -> Step:
            with self._context():
                inputs, given = _repeated((self._inputs, keywords), batch, times)
            return self._step(inputs, given, model, lambda: forward(inputs, given))

        again: Any = LikeCuda if self._like_cuda else nullcontext
        cuda = self._like_cuda
        return Choices(self._model, self._inputs, keywords, batch, run, found, optimizer, cuda, mode, again)

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
            choices = self.choices(found, optimizer, {**self._keywords, **fewer})
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
    ) -> Step:
        model = self._model if model is None else model

        def forward() -> Any:
            return self._tried("forward", run or (lambda: model(*inputs, **keywords)))

        def under_autocast() -> Any:
            return autocasting(model, (inputs, keywords), self._autocast)

        with self._context(autocast=False):
            return self._tried(
                "step", lambda: step(model, forward, (inputs, keywords), under_autocast, self._like_cuda, traced)
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


def _repeated(values: Any, batch: int, times: int) -> Any:
    """``values`` with so many times as many samples."""

    def repeat(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != batch:
            return value
        return torch.cat([value] * times).detach().requires_grad_(value.requires_grad)

    return tree_map(repeat, values) if times > 1 else values
