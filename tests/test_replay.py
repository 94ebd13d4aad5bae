"""Calls that are replayed: what they compute, of which forms, and who looks on."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as fwAD
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import optiacts
from optiacts import host, recording, replay
from optiacts.ops import activation, chain, dropout, norm

pytestmark = pytest.mark.skipif(host.lacking() is not None, reason=str(host.lacking()))

Call = Callable[..., Any]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CALLS: dict[str, tuple[Call, list[tuple[int, ...]]]] = {
    "silu": (optiacts.silu, [(4, 24)]),
    "gelu": (optiacts.gelu, [(4, 24)]),
    "quick_gelu": (optiacts.quick_gelu, [(4, 24)]),
    "elu": (optiacts.elu, [(4, 24)]),
    "hardswish": (optiacts.hardswish, [(5, 7)]),
    "swiglu": (optiacts.swiglu, [(4, 24), (4, 24)]),
    "swiglu of one": (optiacts.swiglu, [(4, 24)]),
    "swiglu of its inputs": (lambda x, u: optiacts.swiglu(x, u, keep_output=False), [(4, 24), (4, 24)]),
    "geglu of its inputs": (lambda x, u: optiacts.geglu(x, u, "tanh", keep_output=False), [(5, 7), (5, 7)]),
    "reglu": (optiacts.reglu, [(5, 7), (5, 7)]),
    "dropout": (lambda x: optiacts.dropout(x, 0.25), [(4, 24)]),
    "gelu, dropout": (lambda x: optiacts.activation_dropout(x, "gelu", 0.25), [(4, 24)]),
    "relu, dropout": (lambda x: optiacts.activation_dropout(x, "relu", 0.25), [(5, 7)]),
    "swiglu, dropout": (lambda x, u: optiacts.gated_dropout(x, u, "silu", 0.25), [(4, 24), (4, 24)]),
    "reglu, dropout": (lambda x, u: optiacts.gated_dropout(x, u, "relu", 0.25), [(5, 7), (5, 7)]),
    "layer_norm": (lambda x, w, b: optiacts.layer_norm(x, (24,), w, b), [(4, 24), (24,), (24,)]),
    "layer_norm, no bias": (lambda x, w: optiacts.layer_norm(x, (24,), w), [(4, 24), (24,)]),
    "layer_norm, two dimensions": (lambda x, w: optiacts.layer_norm(x, (4, 6), w), [(3, 4, 6), (4, 6)]),
    "rms_norm": (lambda x, w: optiacts.rms_norm(x, (24,), w), [(4, 24), (24,)]),
    "rms_norm, no weight": (lambda x: optiacts.rms_norm(x, (24,)), [(4, 24)]),
}


def leaves(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    first, *parameters = shapes
    norm = first not in parameters
    others = [1 + 0.1 * torch.randn(shape) if norm else torch.randn(shape) for shape in parameters]
    return [t.to(dtype).requires_grad_() for t in (torch.randn(first), *others)]


def results(call: Call, given: list[Tensor], seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    y = call(*given)
    return [y.detach(), *torch.autograd.grad(y, given, torch.randn(y.shape).to(y.dtype)), torch.rand(3)]


def is_as_in_python(y: Tensor, x: Tensor) -> bool:
    """Whether y is GELU of x, and its gradient that of the functions that are replayed."""
    with torch.no_grad():
        wanted, saved, by = activation._plain_forward(x, "gelu")
        due, _ = activation.plain_backward(by, None, torch.ones_like(y), *saved)
    (found,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return torch.equal(y, wanted) and torch.equal(found, due) and y.stride() == F.gelu(x).stride()


def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has functions called instead of replayed, though by the same ways."""
    monkeypatch.setattr(recording.Recorder, "plan", lambda *_: None)
    replay.forget()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_replay_gives_what_the_function_gives(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, of other values than were recorded, with the random numbers that follow."""
    call, shapes = CALLS[name]
    samples = [leaves(shapes, dtype) for _ in range(6)]
    for sample in samples:  # the first uses prove kernels, the second are recorded
        results(call, sample, 0)
    before = replay.count()
    found = [results(call, sample, seed) for seed, sample in enumerate(samples)]
    assert replay.count() - before >= 2 * len(samples)  # each forward and each backward
    in_python(monkeypatch)
    before = replay.count()
    wanted = [results(call, sample, seed) for seed, sample in enumerate(samples)]
    assert replay.count() == before
    for mine, due in zip(found, wanted, strict=True):
        for a, b in zip(mine, due, strict=True):
            assert a.dtype is b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def test_ops_that_graphs_call_are_replayed() -> None:
    """The dispatcher, by which they come, hands over keywords as well, of which there are none."""
    x, order = torch.randn(2, 8, 4, 6), [0, 2, 3, 1]
    y, bits = activation.activation_forward(x, "gelu", [])
    for op, arguments in (
        (activation.activation_forward, (x, "gelu", [])),
        (activation.activation_backward, (x, y, bits, "gelu", [])),
        (dropout.dropout_pack, (x > 0, order)),
        (norm.norm_statistics, (x, x, None, None, 1e-5, True, False)),
        (chain.chain_forward, (x, "silu", 0, False)),
    ):
        runs = [op(*arguments) for _ in range(3)]  # the first proves kernels, the second is recorded
        before = replay.count()
        runs.append(op(*arguments))
        assert replay.count() == before + 1, op
        due, *others = (run if isinstance(run, (tuple, list)) else (run,) for run in runs)
        assert all(torch.equal(a, b) for other in others for a, b in zip(due, other, strict=True))


def test_a_compiler_traces_no_recording() -> None:
    """Where it leaves a frame alone, as under transforms, it looks at each one that is called from there."""
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
    converted = copy.deepcopy(model)
    optiacts.convert(converted)
    compiled, x = torch.compile(converted, backend="aot_eager"), torch.randn(4, 6)
    for _ in range(4):
        due, got = (
            torch.func.vmap(torch.func.grad(lambda t, run=run: run(t).square().sum()))(x) for run in (model, compiled)
        )
        torch.testing.assert_close(got, due)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: optiacts.dropout(x, 0.25),
        lambda x: optiacts.activation_dropout(x, "gelu", 0.25),
        lambda x: optiacts.swiglu(x, x.detach()),
        optiacts.silu,
    ],
    ids=["dropout", "gelu, dropout", "swiglu", "silu"],
)
def test_an_output_in_another_order_of_memory_is_no_view(call: Call) -> None:
    """PyTorch lets nobody change a view in place that comes out of a Function."""
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    for _ in range(4):
        y = call(x)
        assert not y._is_view() and y.stride() == x.stride()
        y += 1  # as far as autograd goes


AT_ONCE = pytest.mark.skipif(replay._KNOWN["exchange"] is None, reason="this PyTorch has no exchange interface")


@pytest.fixture(params=[pytest.param("at once", marks=AT_ONCE), "by asking"])
def looking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to learn the form of a tensor; the second is for a PyTorch without DLPack's exchange interface."""
    module: Any = host.module()
    if request.param == "by asking":
        module.use({**replay._KNOWN, "exchange": None})
    replay.forget()
    yield
    module.use(replay._KNOWN)


@pytest.mark.usefixtures("looking")
def test_each_form_has_a_plan_of_its_own() -> None:
    base = torch.randn(8, 6, 4, 8)
    forms = [
        base,
        base.clone(memory_format=torch.channels_last),
        base.transpose(1, 2),
        base[:, :, :, ::2],
        base.flatten()[1:].view(-1)[:24],
        base.bfloat16(),
        base.double(),
        base[:0],
        base[0, 0, 0, 0],
        base[:3],
    ]
    for _ in range(4):
        for form in forms:
            x = form.detach().requires_grad_()
            assert is_as_in_python(optiacts.gelu(x), x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize(
    "unlike",
    [
        lambda x: torch.complex(x, -x).conj().imag,  # read with the other sign
        lambda x: torch.complex(x, x),
        lambda x: torch._efficientzerotensor(x.shape),
        lambda x: torch.sparse_coo_tensor(torch.tensor([[0, 1, 2]]), x, x.shape, check_invariants=True),
        lambda x: torch.nested.nested_tensor([x, x]),
        lambda x: x.to("meta"),
        lambda x: x.to(torch.float8_e5m2),
        lambda x: x.to(torch.int64),
    ],
    ids="negative complex zeros sparse nested meta float8 whole".split(),
)
def test_what_is_more_than_its_memory_is_computed(unlike: Callable[[Tensor], Tensor]) -> None:
    """Beside plain tensors of the same shape, for which there is a plan."""

    def compute(x: Tensor) -> Tensor:
        return x.clone()

    replayed = replay.replayed(compute)
    for _ in range(4):
        for x in (torch.arange(1.0, 4.0), unlike(torch.arange(1.0, 4.0))):
            found, due = replayed(x), compute(x)
            assert found.layout is due.layout and found.dtype is due.dtype and found.device == due.device
            if found.layout is torch.strided and not found.is_meta and not found.is_nested:
                assert torch.equal(found.to(due.dtype), due)


def test_settings_belong_to_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    @replay.replayed
    def compute(x: Tensor) -> Tensor:
        asked.append((torch.get_num_threads(), torch.is_autocast_enabled("cpu")))
        return x.mul(2.0)

    x, threads = torch.randn(3), torch.get_num_threads()
    for _ in range(3):
        compute(x)
    assert len(asked) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compute(x)
        assert asked.pop() == (threads, True)
    try:
        torch.set_num_threads(threads + 1)
        compute(x)
        assert asked.pop() == (threads + 1, False)
    finally:
        torch.set_num_threads(threads)
    compute(x)
    assert len(asked) == 2
    replay.forget()
    compute(x)
    assert len(asked) == 3


def test_the_same_tensor_twice_is_another_form_than_two() -> None:
    x, gate = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    for up in (x, x, x, gate, gate, gate, x):
        grads = torch.autograd.grad(optiacts.swiglu(gate, up).sum(), (gate, up))
        due = torch.autograd.grad((F.silu(gate) * up).sum(), (gate, up))
        for a, b in zip(grads, due, strict=True):
            torch.testing.assert_close(a, b)


def test_one_parameter_twice_is_another_form_than_two_in_one_memory() -> None:
    """What is saved of them hangs together with the graph in another way, which second derivatives show."""

    def second(norm: Call, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        (grad,) = torch.autograd.grad(norm(x, (64,), weight, bias).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, weight))

    for step in range(8):
        x, weight = torch.randn(4, 64, requires_grad=True), (1 + 0.1 * torch.randn(64)).requires_grad_()
        bias = weight if step < 4 else weight.detach()
        found, due = (second(norm, x, weight, bias) for norm in (optiacts.layer_norm, F.layer_norm))
        for a, b in zip(found, due, strict=True):
            assert (a - b).norm() <= 2e-6 * b.norm()


def test_a_kernel_that_answers_otherwise_ends_the_replay() -> None:
    """A weight that is bad by now: the channel is rescued, as if nothing had been recorded."""
    weight = torch.ones(128, requires_grad=True)
    for _ in range(4):
        x = torch.randn(8, 128, requires_grad=True)
        torch.autograd.grad(optiacts.layer_norm(x, (128,), weight).sum(), (x, weight))
    with torch.no_grad():
        weight[3] = 0.0
    x, grad = torch.randn(8, 128, requires_grad=True), torch.randn(8, 128)
    for _ in range(3):
        y = optiacts.layer_norm(x, (128,), weight)
        assert y.grad_fn.saved_tensors[8].shape == (8, 1)  # type: ignore[union-attr]  # the rescued channel
        found, due = (torch.autograd.grad(each, (x, weight), grad) for each in (y, F.layer_norm(x, (128,), weight)))
        for a, b in zip(found, due, strict=True):
            torch.testing.assert_close(a, b)


def test_numbers_are_told_apart_by_their_type() -> None:
    @replay.replayed
    def compute(x: Tensor, number: Any) -> Tensor:
        return x.mul(number) if isinstance(number, float) else x.add(1 if number is True else 2)

    x = torch.zeros(1)
    for _ in range(4):
        assert (compute(x, 1).item(), compute(x, 1.0).item(), compute(x, True).item()) == (2, 0, 1)


def test_errors_come_through() -> None:
    @replay.replayed
    def compute(x: Tensor, y: Tensor) -> Tensor:
        return x.add(y)

    for _ in range(4):
        with pytest.raises(RuntimeError, match="size of tensor"):
            compute(torch.randn(3), torch.randn(4))
        assert compute(torch.ones(3), torch.ones(3)).tolist() == [2, 2, 2]


def test_subclasses_and_modes_see_all_as_before() -> None:
    class Kind(torch.Tensor):
        pass

    x = torch.randn(4, 8).as_subclass(Kind).requires_grad_()
    for _ in range(4):
        y = optiacts.gelu(x)
        assert torch.equal(y, F.gelu(x))
        y.sum().backward()
    plain = torch.randn(4, 8, requires_grad=True)
    for _ in range(3):
        optiacts.gelu(plain).sum().backward()
    seen: list[str] = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(op))
            return op(*args, **(kwargs or {}))

    with Mode():
        optiacts.gelu(plain).sum().backward()
    assert {"optiacts.activation_forward.default", "optiacts.activation_backward.default"} <= set(seen)


def test_second_derivatives_and_hooks_after_a_replay() -> None:
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        torch.autograd.grad(optiacts.silu(x).sum(), x)
    assert torch.autograd.gradgradcheck(optiacts.silu, (x,))
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t.clone()):  # type: ignore[func-returns-value]
        y = optiacts.silu(x)
    y.sum().backward()
    assert len(packed) == 2


def test_what_hooks_hand_back_may_lie_in_memory_in_another_way() -> None:
    """PyTorch lets anyone pack a saved tensor later, and unpack it as he likes."""
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(2, 8, 4, 4)

    def gradient(hooked: bool) -> Tensor:
        y = optiacts.gelu(x)
        if hooked:
            saved = y.grad_fn._raw_saved_tensors[0]  # type: ignore[union-attr]
            saved.register_hooks(lambda kept: kept, lambda kept: kept.contiguous())
        return torch.autograd.grad(y, x, grad)[0]

    wanted = [gradient(False) for _ in range(4)][-1]
    for _ in range(4):
        assert torch.equal(gradient(True), wanted)


@pytest.mark.parametrize(
    "unlike", [torch._neg_view, lambda grad: torch._efficientzerotensor(grad.shape)], ids=["negative", "zeros"]
)
def test_gradients_that_are_more_than_their_memory(unlike: Callable[[Tensor], Tensor]) -> None:
    """Bits of a tensor say that it is to be read with the other sign, or as zeros that lie nowhere."""
    x, grad = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    for _ in range(4):
        torch.autograd.grad(optiacts.gelu(x), x, grad)
    for _ in range(3):
        odd = unlike(grad)
        found, due = (torch.autograd.grad(optiacts.gelu(x), x, g)[0] for g in (odd, odd.resolve_neg() + 0))
        assert torch.equal(found, due)


def test_a_change_in_place_is_still_an_error() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    for _ in range(3):
        optiacts.silu(x).sum().backward()
    y = optiacts.silu(x)
    y.add_(1)
    with pytest.raises(optiacts.OverwrittenError):
        y.sum().backward()


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt], ids=lambda error: error.__name__)
def test_an_error_of_a_hook_comes_through_once(error: type[BaseException]) -> None:
    x = torch.randn(4, 8, requires_grad=True)
    for _ in range(3):
        optiacts.silu(x).sum().backward()
    y, calls = optiacts.silu(x), []

    def unpack(kept: Tensor) -> Tensor:
        calls.append(kept)
        if len(calls) == 1:
            raise error("of the hook")
        return kept

    y.grad_fn._raw_saved_tensors[0].register_hooks(lambda kept: kept, unpack)  # type: ignore[union-attr]
    with pytest.raises(error, match="of the hook"):
        y.sum().backward()
    assert len(calls) == 1


def test_nothing_is_held_by_a_replay() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    for _ in range(3):
        optiacts.swiglu(x, x).sum().backward()
    y = optiacts.swiglu(x, x)
    alive = [weakref.ref(tensor) for tensor in (y, y.grad_fn)]
    y.sum().backward()
    del y
    assert [each() for each in alive] == [None, None]
    counts = []
    for _ in range(3):
        for _ in range(200):
            optiacts.layer_norm(x, (8,)).sum().backward()
        gc.collect()
        counts.append((len(gc.get_objects()) // 20, sys.getrefcount(x)))
    assert counts[2] == counts[1]


def test_threads_record_and_replay_at_once() -> None:
    """Each thread has forms of its own, which others forget meanwhile."""
    wrong: list[str] = []

    def work(number: int) -> None:
        torch.manual_seed(number)
        for step in range(60):
            x = torch.randn(2 + step % 5, 8 * (1 + number % 3), requires_grad=True)
            if not is_as_in_python(optiacts.gelu(x), x):
                wrong.append(f"{number}, {step}")
            if step % 20 == 19:
                replay.forget()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_it_results_are_the_same() -> None:
    code = """
import torch, optiacts
from optiacts import host, replay
replay.record_after(1)
torch.manual_seed(0)
x = torch.randn(4, 8, requires_grad=True)
for _ in range(4):
    y = optiacts.layer_norm(optiacts.swiglu(optiacts.silu(x), x), (8,))
    (grad,) = torch.autograd.grad(y.square().sum(), x)
print(y.tolist(), grad.tolist(), host.lacking())
"""
    outputs = []
    for without in (True, False):
        environment = os.environ | ({host.VARIABLE: "0"} if without else {})
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        )
        outputs.append(run.stdout.strip())
    assert outputs[0].endswith(f"{host.VARIABLE}=0") and outputs[1].endswith("None")
    assert outputs[0].rpartition("] ")[0] == outputs[1].rpartition("] ")[0]


@pytest.mark.parametrize("name", ["gelu", "swiglu", "dropout", "layer_norm"])
def test_what_hooks_hand_back_must_fit(name: str) -> None:
    """Kernels go by address: another shape or device is an error, and none is read beyond its end."""
    call, shapes = CALLS[name]
    given = leaves(shapes, torch.float32)
    for _ in range(4):
        results(call, given, 0)
    for odd in (lambda kept: kept[:1], lambda kept: kept.to("meta")):
        y = call(*given)
        for saved in y.grad_fn._raw_saved_tensors:
            with contextlib.suppress(RuntimeError):  # of one that is none
                saved.register_hooks(lambda kept: kept, odd)
        with pytest.raises((ValueError, RuntimeError)):
            y.backward(torch.ones_like(y))


@pytest.mark.parametrize(
    ("call", "theirs"),
    [
        (optiacts.gelu, F.gelu),
        (lambda x: optiacts.swiglu(x, x), lambda x: x * torch.sigmoid(x) * x),  # PyTorch's SiLU has none there
        (lambda x: optiacts.layer_norm(x, (8,)), lambda x: F.layer_norm(x, (8,))),
    ],
    ids=["gelu", "swiglu", "layer_norm"],
)
def test_gradients_of_dual_numbers_have_tangents(call: Call, theirs: Call) -> None:
    x, grad, tangent = (torch.randn(4, 8, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    for _ in range(4):
        torch.autograd.grad(call(x), x, grad)
    found = []
    for each in (call, theirs):
        y = each(x)
        with fwAD.dual_level():
            (product,) = torch.autograd.grad(y, x, fwAD.make_dual(grad, tangent))
            found.append(fwAD.unpack_dual(product).tangent)
    torch.testing.assert_close(*found)


def test_a_module_from_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = host.module.__wrapped__
    assert not isinstance(find(), str)
    monkeypatch.setattr(host, "INTERFACE", host.INTERFACE + 1)
    assert "was built from other sources" in find()


class Watching(TorchFunctionMode):
    """Notes the functions of PyTorch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "module",
    [nn.SiLU(), nn.LayerNorm(64), nn.Dropout(0.25), nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU())],
    ids="silu layer_norm dropout chain".split(),
)
def test_a_mode_sees_the_calls_of_a_converted_module(module: nn.Module) -> None:
    """Those of PyTorch's functions, as in the model that it was, however often it was called before."""
    ours, x = copy.deepcopy(module), torch.randn(4, 8, 64, requires_grad=True)
    optiacts.convert(ours)
    for _ in range(4):
        ours(x).sum().backward()
    seen = []
    for each in (ours, module):
        with Watching() as mode:
            each(x)
        seen.append([name for name in mode.seen if name in ("silu", "layer_norm", "dropout", "group_norm")])
    assert seen[0] == seen[1] and seen[0]
