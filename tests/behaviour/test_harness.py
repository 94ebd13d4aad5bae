"""The harness itself: a comparison that cannot fail is worth nothing, so here are conversions that are wrong."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optiacts
from tests.behaviour import cases_calls, cases_inplace, cases_tracing  # noqa: F401 (they declare their cases)
from tests.behaviour.case import CASES, Case
from tests.behaviour.compare import compare
from tests.behaviour.worlds import CHANGED, EVERYWHERE, PLAIN, TOOLS, WHERE_CONVERTED, World

WORLDS = {world.name: world for world in [*EVERYWHERE, *WHERE_CONVERTED, CHANGED, *TOOLS]}
Forward = Callable[..., Any]


def _case(name: str, **other: Any) -> Case:
    (found,) = (case for case in CASES if case.name == name)
    return dataclasses.replace(found, **({"saves": 0, "left": ""} | other))


def _with(forward: Forward) -> Callable[[nn.Module], Any]:
    """A conversion that gives the model this forward, as a class of the same name."""

    def convert(model: nn.Module) -> Any:
        kind = type(model)
        original = kind.forward
        model.__class__ = type(kind.__name__, (kind,), {"forward": lambda self, x: forward(self, x, original)})
        return optiacts.ConversionReport(())

    return convert


class Off(torch.autograd.Function):
    """GELU whose gradient is a little wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (right,) = torch.autograd.grad(F.gelu(leaf), leaf, grad)
        return right * (1 + 1e-4)


def _last_bit(self: Any, x: Tensor, original: Forward) -> Any:
    y = original(self, x)
    return torch.nextafter(y, y + 1) if y.dtype == torch.float32 else y


def _draws(self: Any, x: Tensor, original: Forward) -> Any:
    random.random()
    return original(self, x)


def _twice(self: Any, x: Tensor, original: Forward) -> Any:
    original(self, x)
    return original(self, x)


def _without_autocast(self: Any, x: Tensor, original: Forward) -> Any:
    return self.down(F.gelu(self.gate(x)))


def _without_hooks(self: Any, x: Tensor, original: Forward) -> Any:
    return self.down(F.gelu(self.gate(x)))


def _always_training(self: Any, x: Tensor, original: Forward) -> Any:
    return self.down(F.gelu(self.gate(x)))


def _other_gradient(self: Any, x: Tensor, original: Forward) -> Any:
    return self.down(Off.apply(self.gate(x)))


def _no_gradient(self: Any, x: Tensor, original: Forward) -> Any:
    return self.down(F.gelu(self.gate(x)).detach() if x.requires_grad else F.gelu(self.gate(x)))


def _out_of_place(self: Any, x: Tensor, original: Forward) -> Any:
    return original(self, x.clone())


def _wraps_errors(self: Any, x: Tensor, original: Forward) -> Any:
    try:
        return original(self, x)
    except RuntimeError as error:
        raise RuntimeError(f"in a converted forward: {error}") from error


def _hides_lines(self: Any, x: Tensor, original: Forward) -> Any:
    return self.down(F.gelu(self.gate(x)))


def _attribute(self: Any, x: Tensor, original: Forward) -> Any:
    self.seen = 1
    return original(self, x)


def _keeps_scale(self: Any, x: Tensor, original: Forward) -> Any:
    return self.down(F.gelu(self.gate(x)) * 1.0)


def _not_in_threads(self: Any, x: Tensor, original: Forward) -> Any:
    import threading

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("only one thread")
    return original(self, x)


def _raises_in_place(self: Any, x: Tensor, original: Forward) -> Any:
    raise RuntimeError("optiacts: changed in place")  # names neither the module nor the remedy


CALL = "calls: Keyword"
WRONG = [
    ("train", CALL, _last_bit, "outputs"),
    ("train", CALL, _draws, "random"),
    ("train", CALL, _other_gradient, "gradient of gate.weight"),
    ("train", CALL, _no_gradient, "gradient of gate.weight"),
    ("train", CALL, _attribute, "state of .seen"),
    ("train", "tracing: AppendsOutputs", _twice, "effects"),
    ("train", "tracing: InputInPlace", _out_of_place, "inputs"),
    ("eval", "tracing: EarlyReturn", _always_training, "outputs"),
    ("autocast", "tracing: AutocastOff", _without_autocast, "outputs"),
    ("forward hooks", "calls: LocalName", _without_hooks, "effects"),
    ("forwards put on", "calls: LocalName", _without_hooks, "effects"),
    ("global hooks", "calls: LocalName", _without_hooks, "effects"),
    ("activations replaced", "calls: LocalName", _without_hooks, "outputs"),
    ("input too wide", CALL, _wraps_errors, "error"),
    ("input too wide", CALL, _hides_lines, "error"),
    ("changed later", "tracing: InstanceAttribute", _keeps_scale, "outputs"),
    ("two threads", CALL, _not_in_threads, "error"),
    ("train", "inplace: ParentPlusEquals", _raises_in_place, "error"),
]


@pytest.mark.parametrize(("world", "case", "forward", "word"), WRONG)
def test_wrong_forwards_are_found(world: str, case: str, forward: Forward, word: str) -> None:
    told = compare(_case(case), WORLDS[world], _with(forward))
    assert any(word in line for line in told), told


def _changes_weights(model: nn.Module) -> Any:
    with torch.no_grad():
        next(model.parameters()).mul_(1.0)
        model.gate.bias = nn.Parameter(model.gate.bias.detach().clone())


def _runs_the_model(model: nn.Module) -> Any:
    model(torch.zeros(4, 16))


def _draws_once(model: nn.Module) -> Any:
    torch.rand(())


def _writes_globals(model: nn.Module) -> Any:
    cases_tracing.__dict__["_helper"] = len(cases_tracing.__dict__)


def _writes_the_class(model: nn.Module) -> Any:
    cases_tracing.AppendsOutputs.helper = len(vars(cases_tracing.AppendsOutputs))


def _leaves_gradients(model: nn.Module) -> Any:
    model.gate.bias.grad = torch.zeros(32)


@pytest.mark.parametrize(
    ("convert", "word"),
    [
        (_changes_weights, "tensors"),
        (_runs_the_model, "log"),
        (_draws_once, "random"),
        (_writes_globals, "names"),
        (_writes_the_class, "names"),
        (_leaves_gradients, "gradients"),
    ],
)
def test_wrong_conversions_are_found(convert: Callable[[nn.Module], Any], word: str) -> None:
    told = compare(_case("tracing: AppendsOutputs"), PLAIN, convert)
    cases_tracing.__dict__.pop("_helper", None)
    if "helper" in vars(cases_tracing.AppendsOutputs):
        del cases_tracing.AppendsOutputs.helper
    assert any("the conversion changed" in line and word in line for line in told), told


def test_expectations_can_fail() -> None:
    def nothing(model: nn.Module) -> Any:
        return optiacts.ConversionReport(())

    def something(model: nn.Module) -> Any:
        return optiacts.ConversionReport((optiacts.Conversion("gate", "Linear", what="gelu"),))

    missed = compare(_case(CALL, saves=1), PLAIN, nothing)
    assert any("instead of 1" in line for line in missed), missed
    assert any("instead of 1" in line for line in compare(_case(CALL, saves=1), PLAIN, something))
    unexplained = compare(_case(CALL, left="in place"), PLAIN, nothing)
    assert any("no reason" in line for line in unexplained), unexplained


@pytest.mark.parametrize("world", WORLDS.values(), ids=str)
@pytest.mark.parametrize(
    "name", [CALL, "tracing: RunningMean", "tracing: Noise", "inplace: GrandParent", "tracing: LeafInPlace"]
)
def test_the_original_is_like_itself(name: str, world: World) -> None:
    if name in ("tracing: Noise", "tracing: RunningMean") and world.name == "two threads":
        pytest.skip("which thread comes first is chance")
    assert compare(_case(name), world, lambda model: optiacts.ConversionReport(())) == []
