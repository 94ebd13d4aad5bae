"""Norms: the kernels, and weights that spoil what an output tells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import optiacts
from optiacts.backends import eager_norm, trials_norm, triton_norm
from optiacts.norms import Norm, Saved

from .common import DEVICE, DTYPES, INTERPRETED, Record, named, needs_gpu, relative

SHAPES = [(37, 100), (5, 16), (3, 2, 768), *([] if INTERPRETED else [(4096, 4096), (70_000, 128)])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_kernels(dtype: torch.dtype, centered: bool, shape: tuple[int, ...], record_property: Record) -> None:
    """The kernels of norms against the eager backend: relative errors of dx, dw and db in the Euclidean norm.

    Of the remainder bits: how far the middle of the quarter that they name lies from the output in float64, beyond an
    eighth of a unit in the last place, in roundings of float32.
    """
    kind = Norm(centered, 1e-5, remainder=True)
    x = (2 + 3 * torch.randn(shape, device=DEVICE)).to(dtype)
    scale, shift = (torch.randn(shape[-1], device=DEVICE) * 0.2 + at for at in (1.0, 0.0))
    mean, rstd = kind.statistics(x)
    y = ((x.float() - mean) * rstd * scale + shift).to(dtype)
    expected = eager_norm.norm_statistics(x, y, scale, shift, kind)
    found = triton_norm.norm_statistics(x, y, scale, shift, kind)
    errors = {"rstd": relative(found[1], expected[1])}
    known = triton_norm.norm_statistics(x, y, scale, shift, kind, (mean, rstd))
    assert known[0] is mean
    assert known[1] is rstd
    for (*_, bits), label in ((found, "bits"), (known, "bits of known statistics")):
        assert (bits is None) == (expected[2] is None)
        if bits is not None:
            beyond = _beyond_the_quarter(x, y, scale, shift, kind, bits)
            record_property(label, beyond)
            assert beyond <= 4.0
    columns = torch.tensor([3, 11], device=DEVICE)
    for output, rescued in ((True, None), (True, columns), (False, None)):
        needed = mean if centered and (rescued is not None or not output) else None
        columns_of = None if rescued is None else x.index_select(-1, rescued)
        kept, bits_of = y if output else x, expected[2] if output else None
        saved = Saved(kept, needed, rstd, scale, shift, rescued, columns_of, bits_of, centered, output)
        grad = torch.randn_like(x)
        due, got = (b.norm_backward(grad, saved, torch.float32) for b in (eager_norm, triton_norm))
        for label, ours, theirs in zip(("dx", "dw", "db"), got, due, strict=True):
            errors[label] = max(errors.get(label, 0.0), relative(ours, theirs))
    for label, error in errors.items():
        record_property(label, error)
        assert error <= 2e-6, label


@pytest.mark.parametrize("given", [(True, True, False, False), (True, False, True, True), (False, True, False, True)])
def test_guard(given: tuple[bool, ...]) -> None:
    """What is poisoned, against the eager backend: of a scale, a shift, rescued channels, something lost."""
    wrong = [claim.what for claim in trials_norm.guarded(triton_norm, given, DEVICE) if not bool(claim.holds)]
    assert not wrong


@pytest.mark.parametrize("rescues", [False, True], ids=["none rescued", "rescued"])
@pytest.mark.parametrize(("scaled", "shifted"), [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_the_backward_guards(dtype: torch.dtype, scaled: bool, shifted: bool, rescues: bool) -> None:
    """What a first use claims of a backward that looks at the weight and the bias itself."""
    number = torch.empty(1, device=DEVICE)
    bits = number if dtype.itemsize == 2 else None
    scale, shift = number if scaled else None, number if shifted else None
    columns, rescued, mean = (number, number, number) if rescues else (None, None, None)
    x = torch.empty(1, 40, device=DEVICE, dtype=dtype)
    of = Saved(x, mean, number, scale, shift, columns, rescued, bits, True, True)
    claims = trials_norm.backward(triton_norm, of, dtype, dtype, 40, DEVICE, guarded=True)
    wrong = [claim.what for claim in claims if not bool(claim.holds)]
    assert not wrong


def _beyond_the_quarter(x: Tensor, y: Tensor, scale: Tensor, shift: Tensor, kind: Norm, bits: Tensor) -> float:
    mean, rstd = kind.statistics(x.double())
    exact = (x.double() - mean) * rstd * scale + shift
    eighth = (eager_norm.refined(y, torch.zeros_like(bits)).double() - y.double()).abs() / 3  # the lowest quarter
    beyond = (eager_norm.refined(y, bits).double() - exact).abs() - eighth
    rounding = torch.finfo(torch.float32).eps * ((x.double().abs() + mean.abs()) * rstd * scale.abs() + shift.abs())
    return max(0.0, float((beyond / rounding).max()))


@needs_gpu
@pytest.mark.parametrize("dead", [0, 5, 1024])
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_dead_weights(dtype: torch.dtype, dead: int, record_property: Record) -> None:
    """Channels that the output does not tell, on a device that the host does not wait for."""
    module = optiacts.LayerNorm(1024, device=DEVICE, dtype=dtype)
    plain = nn.LayerNorm(1024, device=DEVICE, dtype=dtype)
    x = torch.randn(512, 1024, device=DEVICE).to(dtype).requires_grad_()
    module(x)  # looks at the weights; that they change is seen
    for each in (module, plain):
        with torch.no_grad():
            each.weight[:dead] = 0
    y, grad = module(x), torch.randn_like(x)
    assert torch.equal(y, plain(x))
    ours = torch.autograd.grad(y, (x, module.weight), grad)
    theirs = torch.autograd.grad(plain(x), (x, plain.weight), grad)
    errors = [
        relative(a, b) if float(b.abs().max()) else float(a.abs().max()) for a, b in zip(ours, theirs, strict=True)
    ]
    record_property("error", max(errors))
    assert max(errors) < {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype]


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_a_change_unseen_is_an_error_and_no_forward_waits(dtype: torch.dtype) -> None:
    module = optiacts.LayerNorm(1024, device=DEVICE, dtype=dtype)
    x = torch.randn(512, 1024, device=DEVICE).to(dtype).requires_grad_()
    step = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    module(x).float().square().sum().backward()
    step.step()
    module.weight.data[3] = 0
    module(x).float().square().sum().backward()
    step.step()
    with pytest.raises(optiacts.UnseenChangeError):
        module(x)
    optiacts.norm_weights_changed()
    with waiting_forbidden(), pytest.raises(RuntimeError, match="synchroniz"):  # the first look waits
        module(x.detach().requires_grad_())
    module(x)
    with waiting_forbidden():
        module(x).float().sum().backward()


@contextlib.contextmanager
def waiting_forbidden() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode: str, record_property: Record) -> None:
    """Compiled, with and without CUDA graphs: gradients, bytes held, and a weight changed unseen."""
    torch.compiler.reset()
    optiacts.norm_weights_changed()
    norm, plain_norm = optiacts.LayerNorm(1024), nn.LayerNorm(1024)
    module = nn.Sequential(norm, nn.Linear(1024, 1024)).to(DEVICE, torch.bfloat16)
    plain = nn.Sequential(plain_norm, nn.Linear(1024, 1024)).to(DEVICE, torch.bfloat16)
    plain.load_state_dict(module.state_dict())
    compiled = torch.compile(module, fullgraph=True, mode=mode)
    x = torch.randn(4096, 1024, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    worst = 0.0
    for _ in range(4):  # warmed up, captured, replayed
        torch.compiler.cudagraph_mark_step_begin()
        module.zero_grad()
        grad = torch.randn_like(x)
        ours = torch.autograd.grad(compiled(x * 1), (x, *module.parameters()), grad)
        theirs = torch.autograd.grad(plain(x), (x, *plain.parameters()), grad)
        worst = max(worst, *(relative(a, b) for a, b in zip(ours, theirs, strict=True)))
    record_property("error", worst)
    assert worst < 1e-2
    step = torch.optim.SGD([nn.Parameter(torch.ones(1, device=DEVICE))])
    step.step()
    norm.weight.data[3] = 0
    torch.compiler.cudagraph_mark_step_begin()
    (found,) = torch.autograd.grad(compiled(x * 1).sum(), x)
    assert bool(found.isnan().all()), "an unseen change did not make the gradient NaN"
    with pytest.raises(optiacts.UnseenChangeError):
        step.step()
    plain.load_state_dict(module.state_dict())
    torch.compiler.cudagraph_mark_step_begin()
    ours = torch.autograd.grad(compiled(x * 1), (x, norm.weight), grad)
    theirs = torch.autograd.grad(plain(x), (x, plain_norm.weight), grad)
    afterwards = max(relative(a, b) for a, b in zip(ours, theirs, strict=True))
    record_property("error afterwards", afterwards)
    assert afterwards < 1e-2
