"""Arguments, and what takes PyTorch's own path."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import optiacts
from optiacts import curves
from optiacts.functional import apply
from tests.samples import EVERY

PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "gelu": (optiacts.gelu, functional.gelu),
    "silu": (optiacts.silu, functional.silu),
    "mish": (optiacts.mish, functional.mish),
}


def node(y: Tensor) -> str:
    return type(y.grad_fn).__name__


def test_ours_is_used_when_a_gradient_is_wanted() -> None:
    assert "Activation" in node(optiacts.gelu(torch.randn(3, requires_grad=True)))


@pytest.mark.parametrize("name", PAIRS)
def test_without_a_gradient_it_is_pytorchs_op(name: str) -> None:
    """Only PyTorch's op is dispatched: no side bits, no op of ours."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, plain = torch.randn(3, requires_grad=True), torch.randn(3)
    with Watch():
        PAIRS[name][0](plain)
        with torch.no_grad():
            PAIRS[name][0](x)
        with torch.inference_mode():
            PAIRS[name][0](plain)
    assert seen and set(seen) == {f"aten.{name}.default"}


def unsupported() -> dict[str, Tensor]:
    return {
        "integer": torch.arange(4),
        "complex": torch.randn(4, dtype=torch.complex64, requires_grad=True),
        "sparse": torch.randn(4, 4).relu().to_sparse().requires_grad_(),
        "nested": torch.nested.nested_tensor(
            [torch.randn(2), torch.randn(3)], layout=torch.jagged, requires_grad=True
        ),
        "subclass": torch.randn(4).as_subclass(Unknown).requires_grad_(),
        "meta": torch.randn(4, device="meta"),
    }


class Unknown(Tensor):
    pass


@pytest.mark.parametrize("kind", list(unsupported()))
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_not_supported_behaves_as_in_pytorch(name: str, kind: str) -> None:
    ours, theirs = PAIRS[name]
    try:
        wanted = theirs(unsupported()[kind])
    except Exception as error:
        with pytest.raises(type(error)) as caught:
            ours(unsupported()[kind])
        assert str(caught.value) == str(error)
    else:
        got = ours(unsupported()[kind])
        assert type(got) is type(wanted) and node(got) == node(wanted) and got.dtype == wanted.dtype


@pytest.mark.parametrize(
    "function",
    [
        optiacts.gelu,
        lambda x: optiacts.layer_norm(x, (17,)),
        lambda x: optiacts.rms_norm(x, (17,)),
        lambda x: optiacts.swiglu(x, x.sin()),
        lambda x: optiacts.gated(x, x.sin(), "silu", keep_output=False),
    ],
)
def test_meta_tensors_with_a_gradient(function: Callable[[Tensor], Tensor]) -> None:
    """PyTorch knows no autocast of theirs, and raises where it is asked."""
    x = torch.empty(3, 17, device="meta", requires_grad=True)
    y = function(x)
    y.sum().backward()
    assert y.device.type == "meta" and y.shape == (3, 17)
    assert x.grad is not None and x.grad.shape == x.shape


def test_wrong_arguments() -> None:
    with pytest.raises(RuntimeError, match="approximate argument must be either none or tanh"):
        optiacts.gelu(torch.randn(3, requires_grad=True), approximate="erf")
    with pytest.raises(ValueError, match="curve must be one of"):
        apply("gelo", torch.randn(3))
    with pytest.raises(TypeError, match="not list"):
        optiacts.silu([1.0, 2.0])  # type: ignore[arg-type]


def test_modules_are_their_twins() -> None:
    twins = [
        (optiacts.GELU("tanh"), torch.nn.GELU("tanh")),
        (optiacts.GELU(), torch.nn.GELU()),
        (optiacts.SiLU(inplace=True), torch.nn.SiLU(inplace=True)),
        (optiacts.Mish(), torch.nn.Mish()),
    ]
    for ours, theirs in twins:
        assert isinstance(ours, type(theirs)) and ours.state_dict() == theirs.state_dict()
        assert repr(ours) == repr(theirs)
        x = torch.randn(2, 3, requires_grad=True)
        assert torch.equal(ours(x * 1), theirs(x * 1))
    assert repr(optiacts.GELU(inplace=True)) == "GELU(approximate='none', inplace=True)"
    assert repr(optiacts.QuickGELU()) == "QuickGELU()"


def test_changing_a_saved_output_in_place_raises() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    y = optiacts.gelu(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inplace_dropout_after_it_raises() -> None:
    """docs/limits.md tells what to do instead."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), optiacts.GELU(), torch.nn.Dropout(0.5, inplace=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(torch.randn(2, 4)).sum().backward()


@pytest.mark.parametrize("name", EVERY)
def test_an_activation_by_name_is_its_forward_and_a_gate_by_name_multiplies(name):
    x = torch.randn(5, 16)
    for requires_grad in (False, True):
        leaf = x.clone().requires_grad_(requires_grad)
        assert torch.equal(optiacts.activation(leaf, name), curves.get(name).forward(x))
        assert torch.equal(optiacts.activation(leaf * 1, name, inplace=True), curves.get(name).forward(x))
        assert torch.equal(optiacts.gated(leaf, x, name), curves.get(name).forward(x) * x)


def test_the_same_mistake_is_the_same_error():
    x = torch.randn(4, requires_grad=True)
    for call in (lambda: optiacts.gelu(x, approximate="erf"), lambda: optiacts.geglu(x, x, approximate="erf")):
        with pytest.raises(RuntimeError, match="approximate argument must be either none or tanh"):
            call()
    for call in (lambda: optiacts.activation(x, "relu7"), lambda: optiacts.gated(x, x, "relu7")):
        with pytest.raises(optiacts.CurveError, match=r"curve must be one of .*gelu, .*; got 'relu7'"):
            call()
    assert issubclass(optiacts.CurveError, ValueError)
