"""Makes a report: traces one forward of the model as it is, and one after each stage of conversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves

from optiacts.held.fake import fake_copy, forgotten
from optiacts.held.sharing import ActivationSite
from optiacts.reporting.changes import layers_of
from optiacts.reporting.choices import Choice, Option
from optiacts.reporting.data import MemoryReport, Stage
from optiacts.reporting.errors import ReportError
from optiacts.reporting.lora import Lora
from optiacts.reporting.optimizers import OPTIMIZERS, cost
from optiacts.reporting.peak import Peak
from optiacts.reporting.peak import peak as peak_in
from optiacts.reporting.progress import Progress
from optiacts.reporting.ranks import Ranks, ranks_of
from optiacts.reporting.running import Runner
from optiacts.reporting.sharding import meshed, placement
from optiacts.reporting.sizes import memory_of
from optiacts.reporting.stages import Stages
from optiacts.reporting.states import States, states

NOW = "now"
CASTS = "casts shared"


@forgotten()
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
    shard: str | Ranks | None = None,
    lora: Lora | None = None,
    peak: bool = True,
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
            count the workspaces of CUDA's kernels and of its multi-tensor optimizers; as for a model on CUDA.
        autocast: the dtype of ``torch.autocast`` that the step runs under; there is a stage more then.
        name, setting: carried into the report.
        choices: run what people choose from to make it fit: checkpointing, a chunked loss, LoRA, an 8-bit optimizer,
            with OptiActs and without; by default if ``gpu_memory`` is given. Or those of them that are named, such
            as ``("OptiActs", "checkpointing")``.
        checkpoint: every so many-th of the repeated layers is checkpointed; none if 0.
        shard: "fsdp=8", "tp=2" or "fsdp=8,tp=2": everything is that of one of so many ranks, and the inputs are its
            own. ``torch.distributed.fsdp.fully_shard`` on each repeated layer and on the model; Linears split by
            transformers' plan for the model. Run with a process group that sends nothing; without ``choices``, which
            are named one by one: ``checkpoint=1``, adapters in the model.
        lora: the adapters of the choices LoRA and QLoRA, as an ``optiacts.reporting.Lora``.
        peak: find the peak of a step. False runs forwards alone, in half the time.
        progress: called with what is done next, and the fraction that is done already.

    Returns:
        ``MemoryReport``: the stages, the activations and what each gains, the states; ``print`` shows a table.
        ``ReportError`` (a ``ValueError``) says what is wrong with an argument.
    """
    say = progress or (lambda what, done: None)
    card = _checked(model, optimizer, gpu_memory, autocast)
    _check_changes(model, choices, checkpoint)
    _check_kinds(setting, progress, fake=fake, like_cuda=like_cuda, peak=peak)
    _check_inputs(inputs, keyword_inputs)
    if not peak and (card is not None or choices or checkpoint):
        raise ReportError("peak=False: what fits a card, choices and checkpoints are told by the peak; leave it True")
    ranks = None if shard is None else ranks_of(shard)
    if ranks is not None and (choices or not fake):
        raise ReportError("shard: only on fake tensors, and without choices: name the change, such as checkpoint=1")
    if fake:
        model, inputs, keyword_inputs = fake_copy(model, inputs, keyword_inputs)
    if checkpoint and not fake:
        raise ReportError("checkpoint: only on fake tensors, since what it holds is not seen among saved tensors")
    like_cuda = like_cuda or _on_cuda(model)
    with ExitStack() as stack:
        place = None if ranks is None else placement(ranks, stack.enter_context(meshed(ranks)))
        run = Runner(model, inputs, keyword_inputs, like_cuda, autocast, fake, peak, checkpoint, place)
        there = run.placed().model
        spent = cost((p for p in there.parameters() if p.requires_grad), optimizer, like_cuda)
        held = states(there, spent)
        del there
        fold = fake and not checkpoint
        stages, found = Stages(model, run, spent, autocast is not None, fold).all(say)
    options: tuple[Option, ...] = ()
    partial: tuple[Option, ...] = ()
    longest = None
    if (card is not None if choices is None else choices is not False) and not checkpoint and ranks is None:
        only = choices if isinstance(choices, Collection) else None
        options, partial, longest = _options(run, found, optimizer, lora, card, held, stages, only, say)
        stages = [_growing(stage, options) for stage in stages]
    return MemoryReport(
        name=name or type(model).__name__,
        setting=setting or {},
        states=held,
        stages=tuple(stages),
        sites=found,
        gpu_memory=card,
        options=options,
        partial=partial,
        longest=longest,
    )


def _options(
    run: Runner,
    found: tuple[ActivationSite, ...],
    optimizer: str,
    lora: Lora | None,
    card: int | None,
    held: States,
    stages: list[Stage],
    only: Collection[str] | None,
    say: Progress,
) -> tuple[tuple[Option, ...], tuple[Option, ...], int | None]:
    """What people choose from; with some layers checkpointed; the most tokens that fit. Empty if it is not known."""
    choices = run.choices(found, optimizer, lora)
    if choices is None:
        return (), (), None
    options: list[Option] = []
    try:
        there = choices.all()
    except ValueError as error:
        raise ReportError(str(error)) from error
    unknown = [name for name in only or () if name not in {choice.words for choice in there}]
    if unknown:
        raise ReportError(f"choices: {unknown[0]!r} is none here; there are {', '.join(c.words for c in there)}")
    asked = [choice for choice in there if only is None or choice.words in (NOW, *only)]
    for number, choice in enumerate(asked):
        say(f"what it takes with {choice.words}", number / len(asked))
        with suppress(*(() if only else (ReportError, ValueError))):  # where a choice is not for this model
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
        if options[0].largest_batch(card) == 0 and held.bytes <= card:
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


@forgotten()
def peak_of(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    optimizer: str = "adamw",
    like_cuda: bool = False,
    autocast: torch.dtype | None = None,
    shard: Ranks | None = None,
    checkpoint: int = 0,
) -> Peak:
    """The peak of a step of ``model`` as it is: a part of what ``report`` tells, in a fraction of the time."""
    model, keywords = fake_copy(model, dict(inputs))
    with ExitStack() as stack:
        place = None if shard is None else placement(shard, stack.enter_context(meshed(shard)))
        run = Runner(model, (), keywords, like_cuda, autocast, checkpoint=checkpoint, place=place).placed()
        spent = cost((p for p in run.model.parameters() if p.requires_grad), optimizer, like_cuda)
        return peak_in(run.step(), spent)


def _check_changes(model: torch.nn.Module, choices: Any, checkpoint: Any) -> None:
    if not isinstance(checkpoint, int) or isinstance(checkpoint, bool) or checkpoint < 0:
        raise ReportError(f"checkpoint must be a whole number from 0 on; got {checkpoint!r}")
    layers = len(layers_of(model))
    if checkpoint > layers:
        there = f"{layers} repeated layers" if layers else "no repeated layers: no torch.nn.ModuleList of two or more"
        raise ReportError(f"checkpoint: every={checkpoint}, but {type(model).__name__} has {there}")
    if isinstance(choices, str) or not (choices is None or isinstance(choices, (bool, Collection))):
        raise ReportError(
            f'choices must be True, False or names such as ("OptiActs", "checkpointing"); got {choices!r}'
        )


def _check_kinds(setting: Any, progress: Any, **switches: Any) -> None:
    if not (setting is None or isinstance(setting, Mapping)):
        raise ReportError(f"setting must be a dict of words; got {setting!r}")
    if not (progress is None or callable(progress)):
        raise ReportError(f"progress must be called with words and a fraction; got {progress!r}")
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ReportError(f"{name} must be True or False; got {value!r}")


def _check_inputs(*inputs: Any) -> None:
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor) and leaf.ndim > 0]
    if tensors and not tensors[0].shape[0]:
        raise ReportError(f"inputs: the first has the shape {list(tensors[0].shape)}; give at least one sample")


def _on_cuda(model: torch.nn.Module) -> bool:
    return any(p.device.type == "cuda" for p in model.parameters())


def _checked(model: Any, optimizer: Any, gpu_memory: Any, autocast: Any) -> int | None:
    """The bytes of the card; ``ReportError`` for an argument that is not what it should be."""
    if not isinstance(model, torch.nn.Module):
        raise ReportError(f"model must be a torch.nn.Module; got {model!r:.80}")
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ReportError("model is a TorchScript module, which cannot be looked into; give what it was made of")
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ReportError(f"model has a {type(module).__name__} without sizes yet; run it once on real inputs")
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise ReportError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {optimizer!r}")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ReportError(f"autocast must be torch.bfloat16, torch.float16 or None; got {autocast!r}")
    return None if gpu_memory is None else memory_of(gpu_memory)
