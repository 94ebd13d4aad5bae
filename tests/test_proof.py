"""A backend proves itself: kernels that are right serve, broken ones do not, and nothing else notices."""

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import optiacts
from optiacts import backends, cli, curves
from optiacts.backends import (
    all_kinds,
    eager,
    eager_chain,
    eager_norm,
    native,
    native_chain,
    native_norm,
    notices,
    selection,
)
from optiacts.backends.native_library import lacking
from optiacts.backends.notices import SlowPathWarning
from optiacts.chains import Chain
from optiacts.norms import Norm

GELU = curves.get("gelu")
needs_native = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has used no kernel yet."""
    monkeypatch.setattr(notices, "_told", {})
    before = dict(selection.chosen), dict(selection.found)
    selection.forget()
    yield
    selection.forget()
    selection.chosen.update(before[0])
    selection.found.update(before[1])


def wrong() -> list[selection.Result]:
    return [result for result in selection.found.values() if result.wrong]


def gradient(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    optiacts.gelu(x).sum().backward()
    assert x.grad is not None
    return x.grad


def exact(x: torch.Tensor) -> torch.Tensor:
    return GELU.derivative(x.double(), torch)


def off_by(factor: float) -> Callable[..., torch.Tensor]:
    right = native.activation_backward
    return lambda *args: right(*args) * factor


def wrong_on_odd_lengths(grad: torch.Tensor, y: torch.Tensor, *more: Any) -> torch.Tensor:
    result = eager.activation_backward(grad, y, *more)
    if y.shape[-1] % 8:
        result[..., -1] = 0.0
    return result


def raises(*_: Any) -> torch.Tensor:
    raise RuntimeError("the launch failed")


BROKEN: dict[str, Any] = {
    "a decode that is wrong": (off_by(1.03), {"gradients of an even length", "gradients of an odd length"}),
    "one that is wrong on odd lengths": (wrong_on_odd_lengths, {"gradients of an odd length"}),
    "a launch that fails": (raises, {"RuntimeError: the launch failed"}),
}


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_kernel_does_not_serve(broken: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    function, reasons = BROKEN[broken]
    monkeypatch.setattr(native, "activation_backward", function)
    x = torch.randn(1001, generator=torch.Generator().manual_seed(7)).to(dtype)
    with pytest.warns(SlowPathWarning) as caught:
        found = gradient(x)
    (told,) = (str(warning.message) for warning in caught)
    assert (
        set(told.partition("'s: ")[2].split(", ") if "differ" in told else [told.partition(". ")[2]])
        - {f"mean error of {reason}" for reason in reasons}
        == reasons
    ), told
    y, bits = eager.activation_forward(x, GELU, ())
    assert torch.equal(found, eager.activation_backward(torch.ones_like(x), y, bits, GELU))
    assert backends.select(x, GELU) is eager
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient(x)  # told once
    (line,) = [line for line in optiacts.doctor().kernels if line.startswith("WARNING")]
    assert told.removeprefix("optiacts: ") in line and "gelu, activation" in line
    # what works goes on serving
    assert backends.select_gated(x, GELU) is native


@needs_native
def test_a_kernel_that_is_wrong_by_less_than_the_contract_allows_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "activation_backward", off_by(1 + 1e-6))
    assert backends.select(torch.empty(3), GELU) is native
    selection.forget()
    monkeypatch.setattr(native, "activation_backward", off_by(1 + 1e-5))
    with pytest.warns(SlowPathWarning):
        assert backends.select(torch.empty(3), GELU) is eager


def flipped(bits: torch.Tensor) -> torch.Tensor:
    bits = bits.clone()
    bits.view(-1)[-1] ^= 1
    return bits


@needs_native
def test_each_family_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong bit in what is packed, or one wrong gradient, in each: all go to eager, each with its warning."""
    x, norm = torch.randn(2, 16, 8), Norm(True, 1e-5, remainder=True)
    half = x.bfloat16()
    right_gated, right_pack = native.gated_forward, native.pack_dropped
    right_statistics, right_norm = native_norm.norm_statistics, native_norm.norm_backward
    right_chain, right_forward = native_chain.chain_backward, native_chain.forward
    right_taken = native_chain.statistics

    def gated(*args: Any) -> Any:
        h, slot, bits = right_gated(*args)
        return h, slot, flipped(bits)

    def statistics(*args: Any) -> Any:
        mean, rstd, bits = right_statistics(*args)
        return mean, rstd * (1 + 5e-6), bits

    monkeypatch.setattr(native, "gated_forward", gated)
    monkeypatch.setattr(native, "pack_dropped", lambda kept: flipped(right_pack(kept)))
    right_layer = native_norm.layer_norm
    monkeypatch.setattr(native_norm, "layer_norm", lambda *args: tuple(t * (1 + 1e-6) for t in right_layer(*args)))
    monkeypatch.setattr(native_norm, "_unfused", set())
    monkeypatch.setattr(native_norm, "norm_statistics", statistics)
    monkeypatch.setattr(native_norm, "norm_backward", lambda *args: tuple(t * 1.01 for t in right_norm(*args)))
    monkeypatch.setattr(native_norm, "any_bad", lambda *args: False)
    monkeypatch.setattr(native_chain, "forward", lambda *args: (right_forward(*args)[0], right_forward(*args)[1] * 0))
    monkeypatch.setattr(native_chain, "statistics", lambda *args: tuple(t * 1.00002 for t in right_taken(*args)))
    monkeypatch.setattr(native_chain, "chain_backward", lambda *args: tuple(t * 1.02 for t in right_chain(*args)))
    with pytest.warns(SlowPathWarning) as caught:
        assert backends.select_gated(x, GELU) is eager
        assert backends.select_for_dropout(x) is eager
        assert backends.select_norm_statistics(half, half, norm) is eager_norm
        assert backends.any_bad(torch.zeros(4), None, norm, torch.float32)
        assert backends.select_chain(x, curves.get("silu")) is eager_chain
        kind = Chain("BatchNorm", "silu", "batch", 1e-5)
        assert backends.select_chain_statistics(x, kind, False) is eager_chain
        layer = optiacts.LayerNorm(16)
        layer(torch.randn(4, 16, requires_grad=True)).sum().backward()
        batch = torch.nn.BatchNorm1d(16)
        optiacts.norm_activation(x.requires_grad_(), batch, "silu").sum().backward()
    told = " ".join(str(warning.message) for warning in caught)
    for what in ("gated product", "dropout", "layer norms, forward", "statistics of norms", "looks at weights",
                 "gradients of norms", "forward after a norm", "statistics of batch",
                 "gradients after a norm of batch"):  # fmt: skip
        assert what in told, what
    assert not [module for module in selection.chosen.values() if module.name == "native"]


@needs_native
def test_every_kernel_of_a_cpu_is_right_here() -> None:
    """Of three curves, in every dtype: what has a kernel is tried, and serves."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.empty(2, dtype=dtype)
        for curve in map(curves.get, ("gelu", "elu", "relu_squared")):
            for scaled in (False, True):
                assert backends.select_gated(x, curve, scaled) is native
                assert backends.select(x, curve, scaled and curve.survives_dropout) is native
    assert len(selection.found) == 3 * (3 * 3 + 2) and not wrong()
    assert "33 kinds of kernels, all right" in str(optiacts.doctor())


@needs_native
def test_the_caller_notices_nothing() -> None:
    """Neither random numbers, modes nor transforms; and none of theirs reaches the trial."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    seen: list[str] = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    packed: list[torch.Tensor] = []
    x = torch.randn(5, requires_grad=True)
    state = torch.get_rng_state()
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t),
        Watching(),
        torch.device("meta"),
        torch.autocast("cpu", torch.bfloat16),
    ):
        y = optiacts.gelu(x)
    y.sum().backward()
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert len(packed) == 2 and len(seen) < 12, (len(packed), seen)
    assert [*selection.found.values()] == [("gelu, activation, float32 (native)", "cpu", "")]
    selection.forget()
    with torch.inference_mode():
        optiacts.gelu(torch.randn(5))
    inputs = torch.randn(3, 5)
    torch.func.vmap(torch.func.grad(lambda row: optiacts.gelu(row).sum()))(inputs)
    assert not wrong()
    assert backends.select(torch.empty(2), GELU) is native
    assert torch.allclose(gradient(inputs).double(), exact(inputs), atol=1.2e-4)


@needs_native
def test_two_threads_may_come_first() -> None:
    results: list[torch.Tensor] = []
    x = torch.randn(257)
    threads = [threading.Thread(target=lambda: results.append(gradient(x))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and all(torch.equal(result, results[0]) for result in results)
    assert not wrong()


@needs_native
def test_too_little_memory_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a warning nor a choice: the next call tries again."""

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    x = torch.randn(100)
    with monkeypatch.context() as patch:
        patch.setattr(native, "activation_backward", full)
        assert (gradient(x).double() - exact(x)).abs().max() <= 1.2e-4  # eager's
        assert not selection.found and not selection.chosen
    assert backends.select(x, GELU) is native


def test_nothing_is_tried_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager serves there, and the choice stays open."""
    with monkeypatch.context() as patch:
        patch.setattr(selection, "is_capturing", lambda device: True)
        patch.setattr(selection, "failure", raises)
        assert backends.select(torch.empty(2), GELU) is eager
        assert not selection.chosen and not selection.found


@needs_native
def test_doctor_proves_all_that_there_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(all_kinds, "_names", lambda: ["silu"])
    monkeypatch.setattr(all_kinds, "WIDTHS", (64,))
    right = native.scale_kept
    monkeypatch.setattr(native, "scale_kept", lambda x, *more: right(x, *more) * (1 + 2 * torch.finfo(x.dtype).eps))
    assert cli.main(["doctor", "--prove"]) == 0
    output = capsys.readouterr().out
    of_silu, of_norms, of_norms_in_16_bits = 2 + 2 + 1 + 3 * 2 * 2, 2 * (2 + 3), 2 * (2 + 5)
    count = 3 * (of_silu + 2) + of_norms + 2 * of_norms_in_16_bits
    assert f"{count} kinds of kernels, of which 3 differ" in output
    assert output.count("WARNING: dropout, ") == 3


# OPTIACTS_BACKEND


@needs_native
@pytest.mark.parametrize("wanted", ["eager", "native"])
def test_the_environment_forces_a_backend(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(selection.VARIABLE, wanted)
    x = torch.linspace(-3, 3, 101)
    assert backends.select(x, GELU).name == backends.select_gated(x, GELU).name == wanted
    assert backends.select(x.double(), GELU) is eager  # for which no other has kernels
    assert backends.select(x.to("meta"), GELU) is eager
    assert (gradient(x).double() - exact(x)).abs().max() <= 1.2e-4
    report = optiacts.doctor().devices[0]
    assert report.backend == wanted and not optiacts.doctor().problems
    assert report.not_used == {name: f"OPTIACTS_BACKEND={wanted}" for name in selection.NAMES if name != wanted}
    assert backends.has_chain_kernels(x.device)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("fast", "OPTIACTS_BACKEND must be one of eager, native, triton; got 'fast'"),
        ("triton", "OPTIACTS_BACKEND=triton cannot serve cpu: the triton backend serves CUDA, ROCm and XPU devices"),
    ],
)
def test_a_backend_that_is_none_or_cannot_serve_is_named(
    wanted: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call raises it, and `doctor` diagnoses it."""
    monkeypatch.setenv(selection.VARIABLE, wanted)
    for _ in range(2):
        with pytest.raises(ValueError, match=reason):
            gradient(torch.ones(2))
    diagnosis = optiacts.doctor()
    assert diagnosis.devices[0].backend == "none"
    (problem,) = diagnosis.problems
    assert problem.startswith(reason) and f"PROBLEM: {reason}" in str(diagnosis)
