"""Chains of small tensors, which call the ops behind PyTorch's norms: same results, side effects and errors."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from optiacts.ops import chain as chain_ops
from tests.test_chains import NORMS, made


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # PyTorch's, once
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*NORMS])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_small_chains_are_as_others(
    autocast: bool, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Often enough to be replayed, with changes of the module in between that nothing may overlook."""
    found = []
    for most in (0, chain_ops.SMALL):
        monkeypatch.setattr(chain_ops, "SMALL", most)
        torch.manual_seed(0)
        norm, x = made(name)
        x, results = x.to(dtype).requires_grad_(), []
        for step in range(40):
            if step == 35 and isinstance(norm, nn.modules.batchnorm._NormBase):
                norm.momentum = 0.5
            if step == 36:
                norm.eps = 0.1  # type: ignore[assignment]
            if step == 37 and norm.weight is not None:
                norm.weight.data[1] = 0.0  # type: ignore[index, union-attr]
            if step == 38 and norm.weight is not None:
                norm.weight.data[:] = 0.0  # type: ignore[index, union-attr]
            if step == 39:
                norm.eval()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = optiacts.norm_activation(x, norm, "silu")
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), [x, *norm.parameters()])))
        found.append((results, [buffer.clone() for buffer in norm.buffers()]))
    (theirs, left), (ours, right) = found
    assert all(map(torch.equal, left, right))
    for first, second in zip(theirs, ours, strict=True):
        assert torch.equal(first[0], second[0])
        for a, b in zip(first[1:], second[1:], strict=True):
            assert (a - b).norm() <= 2e-6 * (a.norm() + b.norm()), (a - b).norm() / a.norm()


@pytest.mark.parametrize(
    "change",
    [
        lambda norm: setattr(norm, "running_mean", torch.zeros(3)),
        lambda norm: setattr(norm, "running_mean", torch.zeros(100)),
        lambda norm: setattr(norm, "running_var", torch.ones(())),
        lambda norm: setattr(norm, "running_var", None),
        lambda norm: setattr(norm, "running_mean", torch.zeros(64, requires_grad=True)),
        lambda norm: setattr(norm, "eps", 0.0),
        lambda norm: setattr(norm, "momentum", None),
    ],
    ids="short long scalar none trained eps momentum".split(),
)
def test_a_batch_norm_refuses_what_it_refuses_alone(change: Callable[[nn.Module], None]) -> None:
    """An op behind PyTorch's function would write running statistics beyond their end."""
    norm = nn.BatchNorm2d(64)
    change(norm)
    theirs, x = copy.deepcopy(norm), torch.randn(2, 64, 4, 4)

    def outcome(step: Callable[[Tensor], Tensor]) -> Any:
        try:
            return step(x.clone().requires_grad_()).detach()
        except Exception as error:
            return type(error), str(error)

    due = outcome(lambda x: functional.silu(theirs(x)))
    found = outcome(lambda x: optiacts.norm_activation(x, norm, "silu"))
    assert torch.equal(found, due) if isinstance(due, Tensor) else found == due
    for a, b in zip(norm.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_group_of_a_single_value_is_pytorchs_error() -> None:
    for x in (torch.randn(1, 8), torch.randn(1, 8, 1, 1)):
        with pytest.raises(ValueError, match="more than 1 value"):
            optiacts.norm_activation(x.requires_grad_(), nn.GroupNorm(8, 8), "silu")
    assert optiacts.norm_activation(torch.randn(2, 8, requires_grad=True), nn.GroupNorm(8, 8), "silu").shape == (2, 8)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.LayerNorm((4, 8)), nn.RMSNorm(8)], ids=str)
def test_a_norm_of_all_dimensions_goes_its_own_way(norm: nn.Module) -> None:
    x = torch.randn(norm.normalized_shape, requires_grad=True)  # type: ignore[arg-type]
    found, due = optiacts.norm_activation(x, norm, "silu"), functional.silu(norm(x))
    assert torch.equal(found, due)
    for a, b in zip(*(torch.autograd.grad(y.sum(), [x, *norm.parameters()]) for y in (found, due)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_trace_changes_running_statistics() -> None:
    """Small chains call another op than the norm does, of which a trace knows nothing."""
    norm, x = made("BatchNorm2d")
    x = x.float().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's: shapes are constants of the trace, and tracing is deprecated
        traced = torch.jit.trace(optiacts.NormActivation(norm, "silu"), x, check_trace=False)
    theirs = copy.deepcopy(norm)
    assert torch.equal(traced(x), functional.silu(theirs(x)))
    assert torch.equal(norm.running_mean, theirs.running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "norms",
    [
        (nn.InstanceNorm2d(8), nn.RMSNorm((5, 6))),
        (nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 1, bias=False), nn.RMSNorm((8, 5, 6))),
        (nn.LayerNorm(6), nn.Linear(6, 6, bias=False), nn.RMSNorm(6)),
        (nn.BatchNorm2d(8), nn.Tanh(), nn.RMSNorm(6)),
        (nn.LayerNorm(6), nn.InstanceNorm2d(8)),
    ],
    ids=str,
)
def test_a_norm_behind_another_goes_by_its_own_statistics(norms: tuple[nn.Module, ...]) -> None:
    """PyTorch's graph tells those of the last norm that keeps any, which may be another one."""
    torch.manual_seed(0)
    x = (torch.randn(3, 8, 5, 6) * 100).requires_grad_()
    *before, norm = (copy.deepcopy(module) for module in norms)
    parameters = [x, *(p for module in (*before, norm) for p in module.parameters())]
    found = []
    for chain in (lambda z: functional.silu(norm(z)), lambda z: optiacts.norm_activation(z, norm, "silu")):
        y = chain(nn.Sequential(*before)(x))
        found.append(torch.autograd.grad(y, parameters, torch.linspace(-1, 1, y.numel()).view(y.shape)))
    for due, got in zip(*found, strict=True):
        assert (got - due).norm() <= 1e-4 * due.norm() + 1e-6


@pytest.mark.parametrize(
    ("norm", "function"),
    [
        (nn.BatchNorm2d(8), "batch_norm"),
        (nn.GroupNorm(2, 8), "group_norm"),
        (nn.LayerNorm(4), "layer_norm"),
        (nn.InstanceNorm2d(8), "instance_norm"),
        (nn.RMSNorm(4), "rms_norm"),
    ],
    ids=str,
)
def test_a_function_that_somebody_replaced_is_called(
    norm: nn.Module, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It need not be such a norm any more: its own gradient is the one."""
    norm = copy.deepcopy(norm).double()
    x, own = torch.randn(2, 8, 4, 4).double().requires_grad_(), getattr(functional, function)
    monkeypatch.setattr(functional, function, lambda *args, **kwargs: own(*args, **kwargs).exp())
    due, got = functional.silu(norm(x)), optiacts.norm_activation(x, norm, "silu")
    assert torch.equal(got, due)
    gradients = (torch.autograd.grad(y.square().sum(), x)[0] for y in (due, got))
    torch.testing.assert_close(*gradients)
