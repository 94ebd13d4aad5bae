"""PyTorch's own OpInfo and ModuleInfo samples for these functions, run against ours."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import optiacts
from tests.samples import bits_of

OURS: dict[str, Callable[..., Tensor]] = {
    "nn.functional.gelu": optiacts.gelu,
    "nn.functional.silu": optiacts.silu,
    "nn.functional.mish": optiacts.mish,
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@functools.cache
def pytorchs() -> dict[str, Any]:
    """Its database takes seconds to import, which only the process that runs these tests should spend."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {info.name: info for info in op_db if info.name in OURS and not info.variant_test_name}


def samples(name: str, dtype: torch.dtype) -> Iterator[tuple[Tensor, tuple[Any, ...], dict[str, Any]]]:
    """Every sample of PyTorch's, contiguous and not."""
    for sample in pytorchs()[name].sample_inputs("cpu", dtype, requires_grad=True):
        for variant in (sample, sample.noncontiguous()):
            yield variant.input, variant.args, variant.kwargs


def test_the_samples_are_there() -> None:
    assert set(pytorchs()) == set(OURS)
    assert all(len(list(samples(name, torch.float32))) >= 2 for name in OURS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_forward_and_gradient(name: str, dtype: torch.dtype) -> None:
    for x, args, kwargs in samples(name, dtype):
        wanted = pytorchs()[name].op(x, *args, **kwargs)
        got = OURS[name](x, *args, **kwargs)
        assert torch.equal(bits_of(got.detach()), bits_of(wanted.detach()))
        weight = torch.randn_like(wanted)
        ours, theirs = (torch.autograd.grad(y, x, weight)[0] for y in (got, wanted))
        worst = {torch.float64: 1e-7, torch.float32: 5e-4, torch.float16: 0.03, torch.bfloat16: 0.08}[dtype]
        torch.testing.assert_close(ours, theirs, rtol=0.01 if dtype.itemsize == 2 else 1e-5, atol=worst)


@pytest.mark.parametrize("name", OURS)
def test_gradcheck_gradgradcheck_jvp_and_batched_gradients(name: str) -> None:
    for x, args, kwargs in samples(name, torch.float64):
        if x.numel() > 16:
            x = x.detach().flatten()[:16].requires_grad_()

        def function(x: Tensor, args: Any = args, kwargs: Any = kwargs) -> Tensor:
            return OURS[name](x, *args, **kwargs)

        batched = x.numel() > 0
        assert gradcheck(function, x, check_forward_ad=True, check_batched_grad=batched, fast_mode=True)
        assert gradgradcheck(function, x, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("name", OURS)
def test_vmap(name: str) -> None:
    for x, args, kwargs in samples(name, torch.float64):
        batched = torch.stack([x.detach(), x.detach() * 2, -x.detach()], dim=-1)

        def gradient(x: Tensor, function: Any, args: Any = args, kwargs: Any = kwargs) -> Tensor:
            return torch.func.grad(lambda x: function(x, *args, **kwargs).sum())(x)

        got = torch.func.vmap(lambda x: gradient(x, OURS[name]), in_dims=-1)(batched)
        wanted = torch.func.vmap(lambda x: gradient(x, pytorchs()[name].op), in_dims=-1)(batched)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-7)


def test_error_inputs() -> None:
    """Only GELU's OpInfo has any."""
    for error in pytorchs()["nn.functional.gelu"].error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            optiacts.gelu(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("module", [optiacts.GELU, optiacts.SiLU, optiacts.Mish])
def test_module_samples(module: type[torch.nn.Module]) -> None:
    from torch.testing._internal.common_modules import module_db

    twin = module.__mro__[1]
    (info,) = (info for info in module_db if info.module_cls is twin)
    for training in (True, False):
        for sample in info.module_inputs_func(info, "cpu", torch.float32, requires_grad=True, training=training):
            construct, forward = sample.constructor_input, sample.forward_input
            ours = module(*construct.args, **construct.kwargs)
            theirs = twin(*construct.args, **construct.kwargs)
            assert torch.equal(ours(*forward.args, **forward.kwargs), theirs(*forward.args, **forward.kwargs))
