"""One training step on fake tensors: forward, loss and backward, with everything that lives meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from optiacts.held.activations import CurveOf
from optiacts.held.calls import Calls
from optiacts.held.garbage import without_collection
from optiacts.held.timeline import Recorder, Timeline
from optiacts.held.trace import Trace, Watch, read
from optiacts.held.workspaces import cuda_workspace, unknown
from optiacts.reporting.loss import scalar

FORWARD, BACKWARD = "forward", "backward"
PARAMETERS, INPUTS = "parameters", "inputs"


@dataclass(frozen=True)
class Step:
    """What happened. ``forward_ends``: the number of events until then; ``held``, ``gradients``: pieces."""

    timeline: Timeline
    forward_ends: int
    held: frozenset[int]  # alive when backward begins, made by the forward
    gradients: frozenset[int]  # of parameters
    results: frozenset[int]  # the loss, and what else the output keeps
    not_counted: dict[str, str]  # ops whose workspace is not known, and why
    trace: Trace | None = None  # who holds it, where that was asked for and the graph tells of all of it

    @property
    def told(self) -> bool:
        """Whether ``trace`` has all that the forward made and left."""
        return self.trace is not None and all(self.timeline.pieces[p].key in self.trace.storages for p in self.held)

    @property
    def held_bytes(self) -> int:
        """What the forward leaves for backward."""
        return sum(self.timeline.pieces[piece].nbytes for piece in self.held)


def step(
    model: torch.nn.Module,
    run: Callable[[], Any],
    inputs: Any,
    around: Callable[[], AbstractContextManager[Any]],
    like_cuda: bool,
    traced: CurveOf | None = None,
    backward: bool = True,
) -> Step:
    """Runs ``run()`` inside ``around()`` and, with ``backward``, its backward, and records them.

    Nothing of an output but the loss is kept until backward, as in a trainer that takes ``model(...).loss``. The
    gradients that ``model`` had are there again afterwards. With ``traced``, which tells the activations among the
    modules, the graph is read before backward as well.
    """
    calls = Calls(model, traced) if traced is not None else Calls(model)
    recorder = Recorder(model, cuda_workspace if like_cuda else None, calls)
    found = None
    with _without_gradients(model), without_collection():
        recorder.tell((*model.parameters(), *model.buffers()), PARAMETERS)
        recorder.tell((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), INPUTS)
        with recorder.watching():
            recorder.phase = FORWARD
            with around():
                if traced is None:
                    loss = scalar(run())
                else:
                    with Watch(calls) as watch:
                        output = run()
                    found = read(calls, watch, output, (model, inputs))
                    loss = scalar(output)
                    del output
            ends = len(recorder.timeline.events)
            given = recorder.timeline.given
            left = {piece for piece in recorder.timeline.alive(ends - 1) if piece >= given}
            results = recorder.known([loss])
            recorder.phase = BACKWARD
            if backward:
                loss.backward()
            del loss
        gradients = recorder.known(p.grad for p in model.parameters() if p.grad is not None)
    ops = {piece.op for piece in recorder.timeline.pieces}
    if like_cuda and any(isinstance(module, torch.nn.RNNBase) for module in model.modules()):
        ops.add("aten::_cudnn_rnn")  # which a CPU does not run
    not_counted = unknown(ops, like_cuda)
    made = frozenset(left - results), frozenset(gradients), frozenset(results)
    return Step(recorder.timeline, ends, *made, not_counted, found)


@contextmanager
def _without_gradients(model: torch.nn.Module) -> Iterator[None]:
    before = [(p, p.grad) for p in model.parameters()]
    for p, _ in before:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in before:
            p.grad = gradient
