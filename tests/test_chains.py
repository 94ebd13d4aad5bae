"""A norm and the activation after it as one step: PyTorch's result to the bit, exact gradients, saved bytes."""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import optiacts
from benchmarks.chain_accuracy import DATA, DTYPES, Data, errors
from benchmarks.chain_accuracy import NORMS as MEASURED
from optiacts import chains, curves
from optiacts.decoders.preimage import preimage
from optiacts.ops import chain as chain_ops
from optiacts.ops import norm_channels

C = 16
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm2d": (lambda: nn.BatchNorm2d(C), (4, C, 6, 7)),
    "BatchNorm2d, cumulative average": (lambda: nn.BatchNorm2d(C, momentum=None), (4, C, 6, 7)),
    "BatchNorm2d, plain": (lambda: nn.BatchNorm2d(C, affine=False), (4, C, 6, 7)),
    "BatchNorm2d, no running statistics": (lambda: nn.BatchNorm2d(C, track_running_stats=False), (4, C, 6, 7)),
    "BatchNorm1d of vectors": (lambda: nn.BatchNorm1d(C), (40, C)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(C), (8, C, 5)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(C), (2, C, 3, 4, 5)),
    "GroupNorm": (lambda: nn.GroupNorm(4, C), (4, C, 6, 7)),
    "GroupNorm of vectors": (lambda: nn.GroupNorm(4, C), (40, C)),
    "InstanceNorm2d, plain": (lambda: nn.InstanceNorm2d(C), (4, C, 6, 7)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True), (4, C, 6, 7)),
    "LayerNorm": (lambda: nn.LayerNorm(C), (4, 6, C)),
    "LayerNorm over two dimensions": (lambda: nn.LayerNorm((6, C)), (40, 6, C)),
    "RMSNorm": (lambda: nn.RMSNorm(C), (4, 6, C)),
    "ours": (lambda: optiacts.LayerNorm(C), (4, 6, C)),
}
MOST = {torch.float64: 1e-12, torch.float32: 6e-6, torch.bfloat16: 1.5e-2, torch.float16: 3e-3}


def made(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    make, shape = NORMS[name]
    torch.manual_seed(seed)
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape)).add_(0.2 * torch.randn(parameter.shape))
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape))
    return module, torch.randn(shape, dtype=torch.float64) * 2 + 0.5


def off(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm().clamp(min=1e-30))


def is_chain(y: Tensor) -> bool:
    kinds = ("OptiActsChainBackward", "OptiActsPlainChainBackward", "OptiActsSmallChainBackward")
    return y.grad_fn is not None and y.grad_fn.name() in kinds


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_result_is_pytorchs_and_gradients_are_exact(name: str, dtype: torch.dtype) -> None:
    for training, parameters, channels_last in ((1, 1, 0), (1, 0, 1), (0, 1, 1), (0, 0, 0)):
        module, x = made(name)
        module = module.to(dtype if parameters else torch.promote_types(dtype, torch.float32)).train(bool(training))
        theirs, wide = copy.deepcopy(module), copy.deepcopy(module).double()
        x = x.to(dtype)
        x = x.to(memory_format=torch.channels_last) if channels_last and x.ndim == 4 else x
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_(), x.double().requires_grad_()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's of two dtypes in its RMSNorm
            y = optiacts.norm_activation(inputs[0], module, "silu")
            plain, exact = functional.silu(theirs(inputs[1])), functional.silu(wide(inputs[2]))
        assert is_chain(y)
        assert torch.equal(y, plain)
        assert (y.dtype, y.stride()) == (plain.dtype, plain.stride())
        for ours, their in zip(module.buffers(), theirs.buffers(), strict=True):
            assert torch.equal(ours, their)
        grad = torch.randn(y.shape, dtype=torch.float64)
        for out in (y, plain, exact):
            out.backward(grad.to(out.dtype))
        pairs = [(inputs[0], inputs[2]), *zip(module.parameters(), wide.parameters(), strict=True)]
        for ours, true in pairs:
            assert ours.grad is not None and true.grad is not None
            assert ours.grad.dtype == ours.dtype
            assert off(ours.grad, true.grad) <= MOST[dtype]
        assert inputs[0].grad is not None and inputs[1].grad is not None
        if not name.startswith("InstanceNorm"):  # whose own gradient has an order of its own
            assert inputs[0].grad.stride() == inputs[1].grad.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", MEASURED)
@pytest.mark.parametrize("curve", ["silu", "mish"])
def test_errors_are_within_the_contract(curve: str, norm: str, dtype: str) -> None:
    """At most twice PyTorch's error of dx in bfloat16, 3.5 times in float16, and about 1e-6 in float32.

    PyTorch's RMSNorm on a CPU is made of steps in float32, rounded once: it errs less than its other norms do. In
    16 bits conversion leaves it apart, and who asks for one step gets a LayerNorm's errors.
    """
    most = {"bfloat16": 2.0, "float16": 3.5, "float32": 0.0}[dtype]
    apart = bool(chains.why_not_converted(norm, curve, DTYPES[dtype]))
    assert apart is (norm == "RMSNorm" and dtype != "float32")
    if apart:
        for data in DATA.values():
            found, other = (errors(name, curve, data, DTYPES[dtype]) for name in ("RMSNorm", "LayerNorm"))
            assert found.ours[0] <= 1.1 * other.ours[0], (data, found, other)
        return
    for data in (*(DATA[name] for name in DATA if name != "64 samples"), Data(batch=16, bias=0.0)):
        found = errors(norm, curve, data, DTYPES[dtype])
        assert found.ours[0] <= max(most * found.pytorch[0], 5e-6), (data, found)
        for ours, theirs in zip(found.ours[1:], found.pytorch[1:], strict=True):
            assert ours <= max(most * 1.1 * theirs, 3e-6), (data, found)


@pytest.mark.parametrize("curve", [c for c in curves.CURVES.values() if c.tells_input], ids=lambda c: c.name)
def test_inputs_are_found_again(curve: curves.Curve) -> None:
    """In float32 to some units in the last place, but around the minimum, where the output hardly moves."""
    x = torch.cat([torch.linspace(-80, 40, 100_001), torch.linspace(-4, 4, 100_001), torch.logspace(-7, 0, 999)])
    y = curve.forward(x)
    found = preimage(y, curve.left(x), curve)
    away = (x - curve.x_min).abs() > 0.1
    assert ((found - x).abs() <= 2e-6 * x.abs())[away].all()
    assert ((found - x).abs() <= 1e-3)[~away].all()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        nothing = torch.zeros(2, dtype=dtype)
        far = preimage(-nothing, torch.tensor([True, False]), curve)
        assert far[0] <= -chains.furthest_told(curve.name, dtype) + 1
        assert far[0] >= -120
        assert abs(far[1]) < 1e-6


def held(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optiacts.saved_memory(run, x).bytes


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d"])
def test_saved_are_the_output_and_a_bit(name: str, channels_last: bool) -> None:
    norm, _ = made(name)
    conv = nn.Conv2d(C, 8, 3)
    x = torch.randn(8, C, 16, 16).requires_grad_()
    x = (x * 1).to(memory_format=torch.channels_last) if channels_last else x * 1
    elements = x.numel()
    small = 4 * (2 * C + 2 * 8 * C)  # the weight and the bias, rstd of each sample and group at most
    before = held(lambda x: conv(functional.silu(norm(x))), x)
    after = held(lambda x: conv(optiacts.norm_activation(x, norm, "silu")), x)
    assert before >= 3 * 4 * elements
    assert 4 * elements + elements // 8 <= after <= 4 * elements + elements // 8 + small
    alone = held(lambda x: optiacts.norm_activation(x, norm, "silu"), x)
    assert alone <= 4 * elements + elements // 8 + small


def test_statistics_are_not_taken_twice() -> None:
    """Where PyTorch's norm keeps them, in its own precision."""
    for name in ("BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm"):
        norm, x = made(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chain_ops, "_taken", lambda *_: pytest.fail("taken from the input again"))
            assert is_chain(optiacts.norm_activation(x.float().requires_grad_(), norm, "silu"))


@pytest.mark.parametrize(("statistics", "centered"), [("rows", True), ("rows", False), ("batch", True)])
def test_statistics_of_long_rows_are_taken_in_pieces(
    statistics: str, centered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where kernels take no row so long: on a GPU. Of a constant row as well, and of one far from 0."""
    monkeypatch.setattr(chain_ops, "waits", lambda device: True)
    kind = chains.Chain("", "silu", statistics, 1e-5, groups=4, centered=centered)
    x = torch.randn(3, 8, 90) + 30 * torch.randn(1, 8, 1)
    x[:, 2:4] = 5.0
    for longest in (90, 50, 16, 7):  # of 90 or 180 elements: no piece of 7 divides them evenly but into many
        monkeypatch.setattr(chain_ops, "_LONGEST", longest)
        mean, rstd = chain_ops._taken(kind, x, last=False)
        due_mean, due_rstd = kind.taken(x.double(), last=False)
        assert mean.shape == rstd.shape == due_rstd.shape
        assert torch.allclose(mean.double(), due_mean, rtol=1e-6, atol=1e-6)
        assert torch.allclose(rstd.double(), due_rstd, rtol=1e-5)


def test_activations_that_do_not_tell_their_input_are_refused() -> None:
    for name in ("gelu", "gelu_tanh", "quick_gelu", "relu", "hardswish"):
        with pytest.raises(ValueError, match="does not tell its input everywhere"):
            optiacts.norm_activation(torch.randn(2, C, 4, 4), nn.BatchNorm2d(C), name)
    with pytest.raises(curves.CurveError):
        optiacts.NormActivation(nn.BatchNorm2d(C), "nothing")
    with pytest.raises(TypeError, match="statistics are those of several devices"):
        optiacts.NormActivation(nn.SyncBatchNorm(C), "silu")
    with pytest.raises(TypeError, match="got Linear"):
        optiacts.NormActivation(nn.Linear(C, C), "silu")


def test_the_module_holds_its_norm() -> None:
    module = optiacts.NormActivation(nn.BatchNorm2d(C), "mish")
    x = torch.randn(4, C, 5, 5).requires_grad_()
    assert is_chain(module(x))
    assert list(module.state_dict()) == [f"norm.{key}" for key in nn.BatchNorm2d(C).state_dict()]
    assert "'mish'" in repr(module)


# weights that spoil what the output tells


def _set(attribute: str, value: float, *channels: int) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        with torch.no_grad():
            getattr(module, attribute)[list(channels)] = value

    return change


SPOILED: dict[str, Callable[[Any], None]] = {
    "two dead": _set("weight", 0.0, 3, 5),
    "tiny": _set("weight", 1e-37, 0),
    "enormous": _set("weight", 50.0, 1),
    "biases far above the weights": _set("bias", 30.0, 2, 9),
    "all dead": _set("weight", 0.0, *range(C)),
    "three dead": _set("weight", 0.0, 3, 5, 6),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SPOILED)
def test_bad_channels_are_rescued_or_the_chain_is_given_up(case: str, dtype: torch.dtype, device: str) -> None:
    for name in ("BatchNorm2d", "GroupNorm", "LayerNorm", "InstanceNorm2d", "BatchNorm2d in evaluation"):
        module, x = made(name.partition(" in ")[0])
        module = module.to(dtype).train(" in " not in name)
        x = x.to(dtype).requires_grad_()
        for changed in (False, True):
            if changed:
                SPOILED[case](module)
            wide = copy.deepcopy(module).double()
            y = optiacts.norm_activation(x, module, "silu")
            if changed:
                assert is_chain(y) is (case not in ("all dead", "three dead")), case
            x64 = x.detach().double().requires_grad_()
            grad = torch.randn(y.shape, dtype=torch.float64)
            found = torch.autograd.grad(y, [x, *module.parameters()], grad.to(y.dtype))
            exact = torch.autograd.grad(
                functional.silu(wide(x64)), [x64, *wide.parameters()], grad.to(y.dtype).double()
            )
            for ours, true in zip(found, exact, strict=True):
                assert ours.isfinite().all()
                assert off(ours, true) <= MOST[dtype] or true.norm() < 1e-5, (name, case)


def test_weights_that_change_before_backward_change_no_gradient() -> None:
    module, x = made("BatchNorm2d")
    x = x.float().requires_grad_()
    grad = torch.randn(x.shape)
    wanted = torch.autograd.grad(optiacts.norm_activation(x, module, "silu"), [x, *module.parameters()], grad)
    y = optiacts.norm_activation(x, module, "silu")
    module.weight.data.zero_()  # type: ignore[operator, union-attr]
    module.bias.data.mul_(7)  # type: ignore[operator, union-attr]
    found = torch.autograd.grad(y, [x, *module.parameters()], grad)
    assert all(map(torch.equal, wanted, found))


def test_running_statistics_that_change_before_backward_change_no_gradient() -> None:
    module, x = made("BatchNorm2d")
    module.eval()
    x = x.float().requires_grad_()
    wanted = torch.autograd.grad(optiacts.norm_activation(x, module, "silu").sum(), x)
    y = optiacts.norm_activation(x, module, "silu")
    module.running_var.mul_(100)  # type: ignore[operator, union-attr]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], wanted[0])


def test_weights_changed_unseen_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that the host does not wait for, where every forward goes by what is remembered."""
    optiacts.norm_weights_changed()
    monkeypatch.setattr(norm_channels, "waits", lambda device: True)
    module, x = made("BatchNorm2d")
    x = x.float().requires_grad_()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    optiacts.norm_activation(x, module, "silu").sum().backward()
    module.weight.data[:8].zero_()  # type: ignore[index, union-attr]
    y = optiacts.norm_activation(x, module, "silu")
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.isnan().all()
    optimizer.step()
    with pytest.raises(optiacts.UnseenChangeError):
        optiacts.norm_activation(x, module, "silu")
    optiacts.norm_weights_changed()


# where it is used


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "LayerNorm", "InstanceNorm2d"])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """16-bit activations before weights of float32, as in training with autocast."""
    module, x = made(name)
    for given in (x.float(), x.to(dtype)):
        a, b = given.clone().requires_grad_(), given.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            y, plain = optiacts.norm_activation(a, module, "silu"), functional.silu(copy.deepcopy(module)(b))
        assert is_chain(y)
        assert y.dtype == plain.dtype
        assert torch.equal(y, plain)
        grad = torch.randn(y.shape).to(y.dtype)
        y.backward(grad), plain.backward(grad)
        assert a.grad is not None and b.grad is not None
        assert a.grad.dtype == given.dtype
        assert off(a.grad, b.grad) < 2e-2


def test_without_a_gradient_it_is_pytorch() -> None:
    module, x = made("BatchNorm2d")
    with torch.no_grad():
        assert optiacts.norm_activation(x.float().requires_grad_(), module, "silu").grad_fn is None
    module.requires_grad_(False)
    assert optiacts.norm_activation(x.float(), module, "silu").grad_fn is None


def test_hooks_see_the_norm() -> None:
    module, x = made("BatchNorm2d")
    seen: list[Tensor] = []
    module.register_forward_hook(lambda module, args, output: seen.append(output))
    y = optiacts.norm_activation(x.float().requires_grad_(), module, "silu")
    assert len(seen) == 1
    assert not is_chain(y)


def test_frozen_parameters_and_inputs() -> None:
    module, x = made("BatchNorm2d")
    x = x.float()
    optiacts.norm_activation(x, module, "silu").sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    module.requires_grad_(False)
    (x.requires_grad_(), optiacts.norm_activation(x, module, "silu").sum().backward())
    assert x.grad is not None


def test_second_derivatives_are_an_error_that_names_the_way_out() -> None:
    module, x = made("BatchNorm2d")
    x = x.float().requires_grad_()
    y = optiacts.norm_activation(x, module, "silu")
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(functional.silu(module(x)).square().sum(), x)
    assert off(dx, plain) < 1e-5
    with pytest.raises(NotImplementedError, match="chains=False"):
        dx.square().sum().backward()


def test_transforms_take_the_two_steps() -> None:
    module, x = made("GroupNorm")
    x = x.float()
    wanted = torch.func.grad(lambda x: functional.silu(module(x)).square().sum())(x)
    found = torch.func.grad(lambda x: optiacts.norm_activation(x, module, "silu").square().sum())(x)
    assert off(found, wanted) < 1e-5
    rows = torch.func.vmap(lambda x: optiacts.norm_activation(x[None], module, "silu")[0])(x)
    assert torch.allclose(rows, functional.silu(module(x)), atol=1e-6)


def test_an_output_changed_in_place_is_an_error() -> None:
    module, x = made("BatchNorm2d")
    y = optiacts.norm_activation(x.float().requires_grad_(), module, "silu")
    y.mul_(2)
    with pytest.raises(optiacts.OverwrittenError):
        y.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    module, x = made("GroupNorm")
    x = x.float().requires_grad_()
    outside = checkpoint(optiacts.norm_activation, x, module, "silu", use_reentrant=reentrant)
    assert torch.equal(_backward(outside, x), _backward(optiacts.norm_activation(x, module, "silu"), x))


def test_a_first_look_at_weights_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpointing wants as many saved again, and the first forward alone looks, on a device that remembers."""
    optiacts.norm_weights_changed()
    monkeypatch.setattr(norm_channels, "waits", lambda device: True)
    module, x = made("BatchNorm2d")
    x = x.float().requires_grad_()
    outside = checkpoint(optiacts.norm_activation, x, module, "silu", use_reentrant=False)
    assert torch.equal(_backward(outside, x), _backward(optiacts.norm_activation(x, module, "silu"), x))
    optiacts.norm_weights_changed()


def _backward(y: Tensor, x: Tensor) -> Tensor:
    x.grad = None
    y.sum().backward()
    assert x.grad is not None
    return x.grad


def test_outputs_too_faint_for_float16_are_rescued() -> None:
    """An outlier of a channel whose weight is small enough for all others."""
    x = torch.randn(4, C, 16, 16)
    x[0, 3, 0, 0] = -60
    x = x.half().requires_grad_()
    module = nn.BatchNorm2d(C).half()
    y = optiacts.norm_activation(x, module, "silu")
    assert is_chain(y)
    assert y[0, 3, 0, 0] == 0
    grad = (torch.randn(x.shape) + x.detach().float()).half()
    x64 = x.detach().double().requires_grad_()
    found = torch.autograd.grad(y, x, grad)[0]
    exact = torch.autograd.grad(functional.silu(copy.deepcopy(module).double()(x64)), x64, grad.double())[0]
    assert abs(found[0, 3, 0, 0].double() / exact[0, 3, 0, 0] - 1) < 5e-3


CLOSED = ("leaky_relu", "leaky_relu(negative_slope=0.1)", "elu", "elu(alpha=0.5)", "celu(alpha=2.0)")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("curve", CLOSED)
def test_closed_forms_err_little_more_than_pytorch(curve: str, dtype: str) -> None:
    """In every dtype dx, dw and db err at most twice as much as PyTorch's."""
    for norm in MEASURED:
        for data in (DATA["N(0, 1)"], DATA["one sample"], DATA["weights of 0.006"], Data(correlation=1.0, batch=4)):
            found = errors(norm, curve, data, DTYPES[dtype])
            for ours, theirs in zip(found.ours, found.pytorch, strict=True):
                assert ours <= 2.0 * theirs, (norm, data, found)


def test_closed_forms_hold_one_tensor_and_no_bit() -> None:
    norm, conv = nn.BatchNorm2d(C), nn.Conv2d(C, 8, 3)
    x = torch.randn(8, C, 16, 16).requires_grad_() * 1
    for name in CLOSED:
        after = held(lambda x, name=name: conv(optiacts.norm_activation(x, norm, name)), x)
        assert x.nbytes <= after <= x.nbytes + 4 * 8 * C


@pytest.mark.parametrize("name", ["elu", "celu"])
def test_far_inputs_of_closed_forms_are_kept(name: str) -> None:
    """Where too many outputs have reached the limit, x is kept as well, and gradients are right."""
    norm = nn.BatchNorm2d(C)
    x = torch.randn(4, C, 16, 16)
    x = torch.where(x < -1, x * 40, x)  # outliers: far left of what ELU tells
    wide = x.double().requires_grad_()
    x.requires_grad_()
    y = optiacts.norm_activation(x, norm, name)
    exact = curves.get(name).forward(copy.deepcopy(norm).double()(wide))
    grad = torch.randn(y.shape)
    found, due = torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(exact, wide, grad.double())[0]
    assert is_chain(y)
    assert off(found, due) < 1e-5


@pytest.mark.parametrize("name, dtype", [("silu", torch.float16), ("elu", torch.float32), ("elu", torch.bfloat16)])
def test_far_inputs_on_a_device_that_waits_end_in_an_error(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CPU would keep x for: NaN and an error, and the norm is left apart from then on. Nothing else is."""
    optiacts.norm_weights_changed()
    monkeypatch.setattr(norm_channels, "waits", lambda device: True)
    monkeypatch.setattr(chain_ops, "waits", lambda device: True)
    norm = nn.BatchNorm2d(C).to(dtype)
    near = torch.randn(4, C, 16, 16)
    far = near.clone()
    far[0, 3, 0, 0] = -60
    for x, lost in ((near, False), (far, True)):
        x = x.to(dtype).requires_grad_()
        y = optiacts.norm_activation(x, norm, name)
        assert is_chain(y)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert dx.isnan().all() if lost else dx.isfinite().all()
    torch.optim.SGD(norm.parameters(), lr=0.0).step()
    with pytest.raises(optiacts.UnseenChangeError, match="inputs lay too far left"):
        optiacts.norm_activation(x, norm, name)
    y = optiacts.norm_activation(x, norm, name)
    assert not is_chain(y)
    assert torch.autograd.grad(y, x, torch.ones_like(y))[0].isfinite().all()
    optiacts.norm_weights_changed()
    # a norm without weights has nothing to remember it by: it keeps x at once
    plain = nn.BatchNorm2d(C, affine=False).to(dtype)
    y = optiacts.norm_activation(x, plain, name)
    assert is_chain(y)
    assert torch.autograd.grad(y, x, torch.ones_like(y))[0].isfinite().all()


@pytest.mark.parametrize("name, dtype, count", [("silu", torch.float16, 1), ("elu", torch.bfloat16, 8)])
def test_a_little_beyond_the_furthest_is_within_the_contract(name: str, dtype: torch.dtype, count: int) -> None:
    """Inputs that lie too far left, but so little that they are not counted: dx errs as before."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(C).to(dtype)
    x = torch.randn(8, C, 24, 24)
    target = -chains.furthest_told(name, dtype) - 0.1
    for _ in range(30):  # they move the statistics that they are normalised by
        x[0, 3, 0, :count] = target * float(x[:, 3].std()) + float(x[:, 3].mean())
    x = x.to(dtype)
    with torch.no_grad():
        excess = float((target + 0.1 - norm(x).double()).clamp(min=0).square().sum())
    assert 0 < excess <= chains.most_excess(dtype, x.numel())
    grad = (torch.randn(x.shape) + x.float()).to(dtype)
    wide = x.double().requires_grad_()
    exact = curves.get(name).forward(copy.deepcopy(norm).double()(wide))
    (due,) = torch.autograd.grad(exact, wide, grad.double())
    x.requires_grad_()
    (found,) = torch.autograd.grad(optiacts.norm_activation(x, norm, name), x, grad)
    (theirs,) = torch.autograd.grad(curves.get(name).forward(norm(x)), x, grad)
    assert off(found, due) <= {torch.bfloat16: 2.0, torch.float16: 3.5}[dtype] * off(theirs, due)


def test_steep_and_flat_closed_forms_are_refused() -> None:
    for name in ("elu(alpha=0.01)", "leaky_relu(negative_slope=0.0005)", "selu"):
        with pytest.raises(ValueError, match="does not tell its input everywhere"):
            optiacts.norm_activation(torch.randn(2, C, 4, 4), nn.BatchNorm2d(C), name)


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 16), nn.LayerNorm(8), nn.BatchNorm1d(16)], ids=str)
def test_hooks_of_others_leave_nothing_behind(norm: nn.Module) -> None:
    """The norm's own graph is thrown away, also where others keep what is saved."""
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        x = torch.randn(2, 16, 8, requires_grad=True)
        optiacts.norm_activation(x * 1, norm, "silu").sum().backward()
        between = x * 1
        y = optiacts.norm_activation(between, norm, "silu")
    storage = StorageWeakRef(between.untyped_storage())
    del between, y
    gc.collect()
    assert storage.expired()


class Watched(TorchFunctionMode):
    """Notes where the norm's output lies; ``keeps``: and the output itself."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.keeps, self.place = keeps, 0
        self.normed: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.batch_norm:
            self.place, self.normed = result.data_ptr(), result if self.keeps else None
        return result


@pytest.mark.parametrize("curve", ["silu", "mish", "celu(alpha=2.0)"])
@pytest.mark.parametrize("last", [False, True])
def test_the_output_takes_the_place_of_the_norms_where_nobody_else_sees_that(curve: str, last: bool) -> None:
    norm, x = nn.BatchNorm2d(32), torch.randn(2, 32, 8, 8)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    expected = norm(x).detach()
    forward = curves.get(curve).forward
    for keeps in (False, True):
        with Watched(keeps) as watched:
            y = optiacts.norm_activation(x, norm, curve)
        assert torch.equal(y, forward(expected)) and y.stride() == expected.stride()
        assert (y.data_ptr() == watched.place) == (not keeps)
        assert watched.normed is None or torch.equal(watched.normed, expected)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_parameters_that_are_computed_anew(parameter: str) -> None:
    """The norm has no such parameter of its own: a chain took the weight for 1, and its gradient was wrong."""
    found = []
    for chained in (False, True):
        norm = nn.BatchNorm1d(C)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, C))
        parametrize.register_parametrization(norm, parameter, Doubled())
        x = torch.randn(8, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = optiacts.norm_activation(x, norm, "silu") if chained else functional.silu(norm(x))
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *norm.parameters()])])
    for theirs, ours in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 3e-6 * theirs.norm()
    assert torch.equal(found[0][0], found[1][0])


def test_no_garbage() -> None:
    """A cycle of references is found only now and then, and finding it takes time: there was one for each call."""
    norm, x = made("BatchNorm2d")
    x = x.float().requires_grad_()

    def step() -> None:
        optiacts.norm_activation(x, norm, "silu").sum().backward()

    step()
    gc.collect()
    gc.disable()
    try:
        step()
        assert gc.collect() == 0
    finally:
        gc.enable()
