"""What we take for granted about PyTorch, on the oldest version supported as on the newest: meanings, not names."""

import functools
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import optiacts
from optiacts import _torch, functional, replay
from optiacts.ops import activation, gated, library, plain


class AddsInExport(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if _torch.is_exporting() else x - 1


def test_is_exporting_is_false_outside_export() -> None:
    torch.compiler.reset()
    model, x = AddsInExport(), torch.zeros(2)
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        assert run(x).tolist() == [-1, -1]


@pytest.mark.parametrize("strict", [True, False])
def test_is_exporting_is_true_in_export_and_false_again_afterwards(strict: bool) -> None:
    torch.compiler.reset()
    model, x = AddsInExport(), torch.zeros(2)
    program = torch.export.export(model, (x,), strict=strict)
    assert program.module()(x).tolist() == [1, 1]
    assert not _torch.is_exporting()
    assert torch.compile(model, backend="aot_eager", fullgraph=True)(x).tolist() == [-1, -1]


def inside(transform: Callable[..., Any], ask: Callable[[Tensor], Any]) -> Any:
    """What ``ask`` says of the tensor that ``transform`` hands to the function."""
    answers = []

    def function(x: Tensor) -> Tensor:
        answers.append(ask(x))
        return x.sum()

    transform(function)(torch.ones(3))
    return answers[0]


def jvp(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
    return lambda x: torch.func.jvp(function, (x,), (x,))


transforms = pytest.mark.parametrize(
    "transform", [torch.func.grad, torch.func.vmap, jvp], ids=["grad", "vmap", "jvp"]
)


@transforms
def test_transforms_are_active_while_they_run(transform: Callable[..., Any]) -> None:
    assert inside(transform, lambda x: _torch.transforms_active()) and not _torch.transforms_active()


@transforms
def test_a_transformed_tensor_stays_one(transform: Callable[..., Any]) -> None:
    assert inside(transform, _torch.is_transformed)
    escaped = inside(transform, lambda x: x)
    assert _torch.is_transformed(escaped) and not _torch.is_transformed(torch.ones(3))


def test_forward_mode_is_an_open_level() -> None:
    assert not _torch.forward_mode()
    assert inside(jvp, lambda x: _torch.forward_mode()) and not inside(
        torch.func.grad, lambda x: _torch.forward_mode()
    )
    with forward_ad.dual_level():
        assert _torch.forward_mode()
    assert not _torch.forward_mode()


def test_mode_count_counts_dispatch_modes_only() -> None:
    with torch.device("meta"), BaseTorchFunctionMode():
        assert _torch.mode_count() == 0
    with TorchDispatchMode(), FakeTensorMode():
        assert _torch.mode_count() == 2
    assert _torch.mode_count() == 0


def test_profiled_is_whether_a_profiler_records() -> None:
    assert not _torch.profiled()
    for profiler in (torch.profiler.profile, torch.autograd.profiler.profile):
        with profiler():
            assert _torch.profiled()
        assert not _torch.profiled()


def keys(tensor: Tensor) -> int:
    return _torch.dispatch_keys(tensor).raw_repr()


def test_plain_tensors_have_the_same_dispatch_keys() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    for tensor in (x, x * 2, x.detach(), x.t(), x.to(torch.bfloat16), nn.Parameter(x), torch.ones(())):
        assert keys(tensor) == keys(torch.empty(0))


def test_whoever_wants_to_see_an_op_has_a_dispatch_key() -> None:
    x = torch.ones(3)
    with torch.inference_mode():
        inference = torch.ones(3)
    with FakeTensorMode():
        fake = torch.ones(3)
    wrapped = [inside(transform, lambda x: x) for transform in (torch.func.grad, torch.func.vmap)]
    for special in (x.to("meta"), fake, inference, *wrapped):
        assert keys(special) != keys(x)


def test_run_is_apply() -> None:
    x = torch.randn(2, 9, dtype=torch.float64)

    def through(apply: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda x: apply(x, "silu")[0].sum()

    function = activation.OptiActsDualActivation
    ours, theirs = through(lambda *args: _torch.run(function, *args)), through(function.apply)
    for gradient in (torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f)), torch.func.hessian):
        torch.testing.assert_close(gradient(ours)(x), gradient(theirs)(x), rtol=0, atol=0)
    leaf = x.requires_grad_()
    wanted, got = (torch.autograd.grad(f(leaf), leaf)[0] for f in (theirs, ours))
    assert torch.equal(wanted, got)


def test_tracers_and_buffers_pass_as_plain_tensors() -> None:
    assert {f"{kind.__module__}.{kind.__name__}" for kind in (FakeTensor, FunctionalTensor)} == _torch.TRACERS
    with FakeTensorMode():
        assert functional.passes_our_ops(torch.ones(3))
    assert functional.passes_our_ops(nn.Buffer(torch.ones(3))) and functional.passes_our_ops(
        nn.Parameter(torch.ones(3))
    )


def test_once_makes_outside_of_modes_whatever_the_first_call_is_in() -> None:
    for number, mode in enumerate(
        (torch.device("meta"), FakeTensorMode(), TorchDispatchMode(), torch.inference_mode())
    ):
        calls = []

        @_torch.once
        def table(number: int) -> Tensor:
            calls.append(number)  # noqa: B023
            return torch.full((2,), number)

        with mode:
            first = table(number)
        assert first is table(number) and calls == [number]
        assert keys(first) == keys(torch.empty(0)) and first.tolist() == [number, number]


NAMES = [
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C._functorch, "is_functorch_wrapped_tensor"),
    (torch._C, "_len_torch_dispatch_stack"),
    (torch._C, "_dispatch_keys"),
    (forward_ad, "_current_level"),
    (torch._C, "_DisableTorchDispatch"),
    (torch._C._autograd, "_profiler_enabled"),
]


@pytest.fixture
def without_names(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """_torch.py as a PyTorch without these names would load it, in the place of ours."""
    spec = importlib.util.spec_from_file_location("without_names", _torch.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as names:
        for owner, name in NAMES:
            names.delattr(owner, name)
        spec.loader.exec_module(module)
        assert module.forward_mode()
    for user in (activation, gated, library):
        for name in set(vars(user)) & {"run", "transforms_active", "mode_count", "dispatch_keys", "profiled"}:
            monkeypatch.setattr(user, name, getattr(module, name))
    _torch._keys_of.cache_clear()
    monkeypatch.setattr(gated, "forward_mode", lambda: True)
    assert module.LACKING  # so that nothing is done in C
    monkeypatch.setattr(replay, "function", lambda *_: None)
    monkeypatch.setattr(replay, "replayed", lambda compute: compute)
    for user, name in ((activation, "activation"), (gated, "gated")):
        ways = user._plain_forward, user.plain_backward, user.watched_backward
        monkeypatch.setattr(user, f"plain_{name}", plain.plain(name, *ways))
    return module


@pytest.mark.parametrize("function", [optiacts.gelu, optiacts.swiglu, lambda x: optiacts.silu(x * 1, inplace=True)])
def test_without_a_name_results_are_the_same(
    function: Callable[[Tensor], Tensor], request: pytest.FixtureRequest
) -> None:
    x = torch.randn(3, 8, requires_grad=True)

    def results() -> list[Tensor]:
        transformed = torch.func.vmap(torch.func.grad(lambda x: function(x).sum()))(x.detach())
        tangent = torch.func.jvp(function, (x.detach(),), (torch.ones_like(x),))[1]
        return [function(x), torch.autograd.grad(function(x).sum(), x)[0], transformed, tangent]

    wanted = results()
    module = request.getfixturevalue("without_names")
    assert module.mode_count() and module.transforms_active() and module.is_transformed(x)
    with FakeTensorMode():
        assert module.once(lambda: torch.ones(2))().tolist() == [1, 1]
    torch.testing.assert_close(results(), wanted, rtol=0, atol=0)
    _torch._keys_of.cache_clear()


def test_several_views() -> None:
    x = torch.randn(4, requires_grad=True) * 1
    assert _torch.is_one_of_several_views(x.chunk(2)[0]) and _torch.is_one_of_several_views(x.unbind()[1])
    assert not _torch.is_one_of_several_views(x[1:]) and not _torch.is_one_of_several_views(x.view(2, 2))


class Marked(torch.nn.Module):
    """Asks for an attribute of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((4,), 2.0))
        self.weight.mark = False  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight if self.weight.mark else x * self.weight  # type: ignore[attr-defined]


def test_compilers_guard_an_attribute_of_a_parameter() -> None:
    """By this compiled norms are told that a weight went bad. That one is missing PyTorch 2.11 does not guard."""
    module, x, found = Marked(), torch.full((4,), 3.0), []
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for mark in (False, True, False):
        module.weight.mark = mark  # type: ignore[attr-defined]
        found.append(compiled(x)[0].item())
    assert found == [6.0, 5.0, 6.0]


def test_an_op_is_traced_as_something_else_or_as_itself() -> None:
    """In place operations included, by compilers alone."""
    lib = torch.library.Library("optiacts_facts", "FRAGMENT")
    for name in ("apart", "whole"):
        lib.define(f"{name}(Tensor x) -> Tensor")
        torch.library.impl(lib, name, "CompositeExplicitAutograd")(lambda x: x + 1)
        torch.library.register_fake(f"optiacts_facts::{name}", torch.empty_like, lib=lib)
    _torch.register_traced("optiacts_facts::apart", lambda args: (args[0] * 2).add_(1), lib)
    _torch.register_traced("optiacts_facts::whole", lambda args: None, lib)
    seen: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    both = lambda x: torch.ops.optiacts_facts.apart(x) * torch.ops.optiacts_facts.whole(x)  # noqa: E731
    torch.compiler.reset()
    assert torch.compile(both, backend=aot_autograd(fw_compiler=compiler), fullgraph=True)(torch.ones(1)) == 6
    assert both(torch.ones(1)) == 4
    assert "optiacts_facts.whole.default" in seen and "optiacts_facts.apart.default" not in seen


def test_selective_checkpointing_tells_that_it_chooses_ops() -> None:
    asked = []
    lib = torch.library.Library("optiacts_facts", "FRAGMENT")
    lib.define("asks(Tensor x) -> Tensor")
    torch.library.impl(lib, "asks", "CompositeExplicitAutograd")(lambda x: x + 1)
    torch.library.register_fake("optiacts_facts::asks", torch.empty_like, lib=lib)
    _torch.register_traced("optiacts_facts::asks", lambda args: asked.append(_torch.chooses_ops()), lib)
    asks = lambda x: x * torch.ops.optiacts_facts.asks(x.detach())  # noqa: E731
    contexts = functools.partial(create_selective_checkpoint_contexts, lambda context, op, *args, **kwargs: False)
    for options in ({}, {"context_fn": contexts}):
        run = lambda x, o=options: checkpoint(asks, x, use_reentrant=False, **o)  # noqa: E731
        torch.compiler.reset()
        asked.clear()
        torch.compile(run, backend="aot_eager", fullgraph=True)(torch.ones(1, requires_grad=True))
        assert not options or True in asked
    asked.clear()
    torch.compile(asks, backend="aot_eager", fullgraph=True)(torch.ones(1, requires_grad=True))
    assert asked and True not in asked
