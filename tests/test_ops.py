"""The low-level ops reject what a backend could read out of bounds."""

import contextlib
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import optiacts
from optiacts import ops
from optiacts.layouts import memory_order
from optiacts.packing import pack, packed_shape, unpack


def saved() -> tuple[torch.Tensor, torch.Tensor]:
    return ops.activation_forward(torch.randn(3, 20), "gelu", [])


@pytest.mark.parametrize(
    "wrong", [lambda b: b[:, :2], lambda b: b[:2], lambda b: b.int(), lambda b: b.flatten(), lambda b: b.bool()]
)
def test_mismatched_bits(wrong) -> None:  # type: ignore[no-untyped-def]
    y, bits = saved()
    with pytest.raises(ValueError, match=r"bits must be uint8 of shape \(3, 3\)"):
        ops.activation_backward(torch.ones_like(y), y, wrong(bits), "gelu", [])


@pytest.mark.parametrize("backward", [ops.gated_backward, ops.gated_backward_fused])
def test_gated_ops_check_real_and_fake_tensors_alike(backward) -> None:  # type: ignore[no-untyped-def]
    for mode in (contextlib.nullcontext(), FakeTensorMode()):
        with mode:
            h, slot, bits = ops.gated_forward(torch.randn(3, 20), torch.randn(3, 20), "silu")
            assert bits.shape == (3, 6)
            backward(torch.ones_like(h), h, slot, bits, "silu")
            with pytest.raises(ValueError, match=r"bits must be uint8 of shape \(3, 6\) on cpu for silu"):
                backward(torch.ones_like(h), h, slot, bits[:, :3], "silu")
            with pytest.raises(ValueError, match="slot must have shape, dtype and device of h"):
                backward(torch.ones_like(h), h, slot[:2], bits, "silu")
            with pytest.raises(ValueError, match="up must have shape, dtype and device of gate"):
                ops.gated_forward(h, h[:2], "silu")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4, 5)])
def test_a_gated_product_has_pytorchs_layout(shape, device) -> None:  # type: ignore[no-untyped-def]
    for gate in (torch.randn(shape), torch.randn(shape).transpose(-1, -2), torch.randn(shape).chunk(2, dim=-1)[0]):
        with FakeTensorMode() if device == "meta" else contextlib.nullcontext():
            gate = torch.empty_strided(gate.shape, gate.stride()).normal_()
            h, slot, _ = ops.gated_forward(gate, gate, "silu", memory_order(gate))
            assert h.stride() == (torch.nn.functional.silu(gate) * gate).stride()
            assert slot.is_contiguous()


def test_autograd_nodes_say_whose_they_are() -> None:
    x = torch.randn(3, 20, requires_grad=True)
    results = [optiacts.activation(x, "mish"), optiacts.activation(x * 1, "mish", inplace=True)]
    results += [optiacts.gated(x, x, "mish"), optiacts.swiglu(x)]
    with torch.autograd.forward_ad.dual_level():
        results += [optiacts.gated(x, x, "mish"), optiacts.swiglu(x)]
    assert all(y.grad_fn is not None and y.grad_fn.name().startswith("OptiActs") for y in results)


def step() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    norm = optiacts.LayerNorm(32)
    for y in (optiacts.gelu(x), optiacts.swiglu(x, x * 1), optiacts.dropout(x, 0.5), norm(x)):
        y.sum().backward()


NAMES = {
    "activation_forward", "activation_backward", "gated_forward", "gated_backward", "dropout_pack", "dropout_scale",
    "norm_backward",
}  # fmt: skip


def test_a_profiler_sees_our_ops_by_name() -> None:
    step()
    with torch.profiler.profile(record_shapes=True) as profile:
        step()
    seen = {event.key.removeprefix("optiacts::"): event for event in profile.key_averages(group_by_input_shape=True)}
    assert seen.keys() >= NAMES
    assert seen["activation_backward"].input_shapes[:3] == [[4, 32], [4, 32], [4, 4]]


def test_without_a_profiler_the_dispatcher_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch, dispatched = torch._ops.OpOverload.__call__, set()

    def noted(op: Any, *args: Any, **kwargs: Any) -> Any:
        dispatched.add(op.name().removeprefix("optiacts::"))
        return dispatch(op, *args, **kwargs)

    monkeypatch.setattr(torch._ops.OpOverload, "__call__", noted)
    step()
    assert not dispatched & NAMES
    with torch.profiler.profile():
        step()
    assert dispatched >= NAMES


def test_mismatched_grad() -> None:
    y, bits = saved()
    with pytest.raises(ValueError, match=r"grad must have the shape of y, \(3, 20\); got \(3, 19\)"):
        ops.activation_backward(torch.ones(3, 19), y, bits, "gelu", [])
    with pytest.raises(ValueError, match="one device"):
        ops.activation_backward(torch.ones(3, 20, device="meta"), y, bits, "gelu", [])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (3, 17), (2, 0), (0, 5), (2, 3, 64)])
def test_bits_round_trip(shape: tuple[int, ...]) -> None:
    flags = torch.rand(shape) < 0.5
    packed = pack(flags)
    assert packed.dtype == torch.uint8 and packed.shape == packed_shape(shape)
    assert torch.equal(unpack(packed, flags.shape), flags)


def test_lowest_bit_comes_first_and_padding_is_zero() -> None:
    assert pack(torch.tensor([True, False, False, True, False, False, False, False, True])).tolist() == [9, 1]


@pytest.mark.parametrize("act", [optiacts.gelu, lambda x: optiacts.swiglu(x, x * 1), optiacts.swiglu])
def test_hooks_that_give_back_something_else_are_refused(act: Any) -> None:
    """What a Function has saved itself goes to the kernels unseen; not what hooks have had in their hands."""
    x = torch.randn(8, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[:2]):
        y = act(x * 1)
    with pytest.raises((ValueError, RuntimeError), match=r"shape"):
        y.sum().backward()
