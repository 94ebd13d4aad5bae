"""The steps of a computation from one tensor: written down, tried on probe points of our own, run again."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

from optiacts.conversion.purity import ImpureError

# Constants in models' code have 8 digits and more.
_TOLERANCE = 2e-8


class Slot(NamedTuple):
    """In the arguments of a step: the result of an earlier one; 0 is the input."""

    number: int


class Step(NamedTuple):
    """One operation of torch: its name and overload, its arguments."""

    operation: str
    overload: str
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]


Steps = tuple[Step, ...]


def recorded(run: Callable[[Tensor], Any]) -> Steps:
    """The operations that a callable consists of; ``ImpureError`` if they cannot be run again."""
    trial = tried(run)
    if trial is None:
        raise ImpureError("it does more than compute with its input and numbers, by operations of torch")
    if trial.inplace or not trial.replayable:
        raise ImpureError("its operations cannot be run again")
    return trial.steps


class Replay:
    """Runs steps. Each result is let go of after its last use, as the callable's own code would."""

    def __init__(self, steps: Steps) -> None:
        self._steps = [(getattr(getattr(torch.ops.aten, s.operation), s.overload), s) for s in steps]
        last = {slot.number: at for at, step in enumerate(steps) for slot in _slots(step)}
        self._done = [[index for index in last if last[index] == at and index > 0] for at in range(len(steps))]

    def __call__(self, x: Tensor) -> Tensor:
        results: dict[int, Tensor] = {0: x}
        for number, ((operation, step), done) in enumerate(zip(self._steps, self._done, strict=True), start=1):
            arguments = [results[a.number] if isinstance(a, Slot) else a for a in step.arguments]
            options = {k: results[v.number] if isinstance(v, Slot) else v for k, v in step.options}
            results[number] = operation(*arguments, **options)
            del arguments, options
            for index in done:
                del results[index]
        return results[number]


def _slots(step: Step) -> Iterator[Slot]:
    for value in (*step.arguments, *(value for _, value in step.options)):
        if isinstance(value, Slot):
            yield value


class _Recorder(TorchDispatchMode):
    """Writes down the operations that the computation from one tensor consists of."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._results: list[Tensor] = [x]
        self.strange = False
        self.replayable = True

    def record(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        named = tuple(sorted((key, self._coded(value)) for key, value in (kwargs or {}).items()))
        main = result
        if isinstance(result, tuple) and result:  # the first one, and what PyTorch's own backward needs besides
            main, self.replayable = result[0], False
        if namespace != "aten" or not isinstance(main, Tensor):
            self.strange = True
        else:
            self.steps.append(Step(name, func._overloadname, tuple(map(self._coded, args)), named))
            self._results.append(main)
        return result

    def _coded(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            self.strange |= not isinstance(value, (int, float, bool, str, type(None)))
            return value
        for index in reversed(range(len(self._results))):
            if self._results[index] is value:
                return Slot(index)
        self.strange = True
        return None

    def returns(self, result: Tensor) -> bool:
        """Whether the last step made ``result``."""
        return bool(self.steps) and self._results[-1] is result


# set on the finished class: PyTorch wraps what is defined in it, and imports its whole compiler to do so
_Recorder.__torch_dispatch__ = _Recorder.record  # type: ignore[method-assign, assignment]


@dataclass
class Trial:
    """What came out on the probe points."""

    steps: Steps
    inplace: bool
    values: Tensor
    gradients: Tensor
    replayable: bool  # whether the steps, run again, give the result

    def agrees(self, other: Trial) -> bool:
        x = _points()
        # far out a formula may overflow where the curve does not; what is finite has to agree everywhere
        told = (x.abs() <= _NEAR) | (self.values.isfinite() & self.gradients.isfinite())
        pairs = ((self.values, other.values), (self.gradients, other.gradients))
        return all(bool((((a - b).abs() <= _TOLERANCE * (1 + x.abs())) | ~told).all()) for a, b in pairs)


def tried(run: Callable[[Tensor], Any]) -> Trial | None:
    """Runs a pure callable; None if it fails or returns something else than a tensor like its input."""
    with undisturbed():
        plain = _points().clone()
        recorder = _Recorder(plain)
        try:
            with torch.no_grad(), recorder:
                values = run(plain)
            leaf = _points().clone().requires_grad_()
            x = leaf * 1
            differentiable = run(x)
            (gradients,) = torch.autograd.grad(differentiable.sum(), leaf)
        except Exception:
            return None
        if not isinstance(values, Tensor) or recorder.strange or not recorder.returns(values):
            return None
        if (values.shape, values.dtype) != (plain.shape, plain.dtype):
            return None
        steps = tuple(recorder.steps)
        return Trial(steps, values is plain, values.clone(), gradients, recorder.replayable)


_NEAR = 80.0  # exp does not overflow before, in float32 either


@functools.cache
def _points() -> Tensor:
    with undisturbed():
        dense = torch.linspace(-12, 12, 4001, dtype=torch.float64, device="cpu")
        far = torch.logspace(math.log10(12), 6, 400, dtype=torch.float64, device="cpu")
        return torch.cat([dense, far, -far])


@contextlib.contextmanager
def _no_modes() -> Iterator[None]:
    """Outside all dispatch modes, such as that of fake tensors."""
    modes = [_pop_mode() for _ in range(torch._C._len_torch_dispatch_stack())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Real tensors, gradients and no autocast, whatever convert is called in."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(_no_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
