"""The ways in which people run activations: ours, plain and gated, work in them, with the saving intact."""

import copy
import itertools
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import optiacts
from optiacts import saved_memory
from tests.compilers import without_kernels

ROWS, WIDTH, HIDDEN = 16, 32, 128
TENSOR, BITS = ROWS * HIDDEN * 4, ROWS * HIDDEN // 8
HELD = {  # the input, and what the activation keeps; a gated product's edges are two floats
    "plain": ROWS * WIDTH * 4 + TENSOR + BITS,
    "gated": ROWS * WIDTH * 4 + 2 * TENSOR + 2 * BITS + 8,
}
both = pytest.mark.parametrize("kind", HELD)


class GatedMLP(nn.Module):
    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.product(self.gate(x), self.up(x)))


def torchs_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


def mlp(kind: str) -> nn.Module:
    if kind == "gated":
        return GatedMLP(optiacts.SwiGLU())
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), optiacts.GELU(), nn.Linear(HIDDEN, WIDTH))


def twin(kind: str, model: nn.Module) -> nn.Module:
    """PyTorch's own model with the same parameters."""
    if kind == "gated":
        plain: nn.Module = GatedMLP(torchs_swiglu)
    else:
        plain = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
    plain.load_state_dict(model.state_dict())
    return plain


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().sum(), list(model.parameters())))


@both
def test_save_on_cpu(kind: str) -> None:
    model, x = mlp(kind), torch.randn(ROWS, WIDTH)
    wanted = gradients(model, model(x))
    with torch.autograd.graph.save_on_cpu():
        output = model(x)
    torch.testing.assert_close(gradients(model, output), wanted, rtol=0, atol=0)


def test_saved_tensor_hooks_see_the_output_and_the_bits() -> None:
    seen: list[tuple[torch.dtype, torch.Size]] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append((tensor.dtype, tensor.shape))
        return tensor

    x = torch.randn(ROWS, HIDDEN, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        optiacts.gelu(x)
    assert seen == [(torch.float32, x.shape), (torch.uint8, torch.Size((ROWS, HIDDEN // 8)))]


@both
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(kind: str, use_reentrant: bool) -> None:
    model, x = mlp(kind), torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = gradients(model, model(x))
    output = checkpoint(model, x, use_reentrant=use_reentrant)
    output.square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], wanted, rtol=0, atol=0)


@both
def test_selective_checkpoint_can_keep_our_op(kind: str) -> None:
    """A policy that names our op keeps (y, bits), and the rest is computed again."""
    op = {"plain": torch.ops.optiacts.activation_forward, "gated": torch.ops.optiacts.gated_forward}[kind].default
    calls: list[str] = []

    def policy(context: object, function: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        calls.append(str(function))
        return CheckpointPolicy.MUST_SAVE if function is op else CheckpointPolicy.PREFER_RECOMPUTE

    model, x = mlp(kind), torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = gradients(model, model(x))
    contexts = partial(create_selective_checkpoint_contexts, policy)
    output = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    output.square().sum().backward()
    assert str(op) in calls
    torch.testing.assert_close([p.grad for p in model.parameters()], wanted, rtol=0, atol=0)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    model, x = mlp(kind), torch.randn(ROWS, WIDTH)
    with torch.autocast("cpu", dtype):
        output, plain = model(x), twin(kind, model)(x)
        held, held_by_torch = saved_memory(model, x).bytes, saved_memory(twin(kind, model), x).bytes
    assert output.dtype == dtype and torch.equal(output, plain)
    # PyTorch keeps the input in its place, or gate, act(gate) and up in place of the slot
    tensors, planes = {"plain": (1, 1), "gated": (2, 2)}[kind]
    edges = 4 if kind == "gated" else 0
    assert held_by_torch - held == tensors * TENSOR // 2 - planes * BITS - edges
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=dtype is torch.float16)
    scaler.scale(output.float().square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@both
def test_copies_and_pickles(kind: str) -> None:
    model, x = mlp(kind), torch.randn(ROWS, WIDTH)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), model(x)) and saved_memory(copied, x).bytes == HELD[kind]
    output = optiacts.gelu(torch.randn(3, requires_grad=True))
    assert "Activation" in type(output.grad_fn).__name__


@both
def test_state_dicts_are_exchangeable(kind: str) -> None:
    ours = mlp(kind)
    plain, x = twin(kind, ours), torch.randn(ROWS, WIDTH)
    ours.load_state_dict(plain.state_dict())
    assert torch.equal(ours(x), plain(x)) and list(ours.state_dict()) == list(plain.state_dict())


@both
def test_dynamic_shapes_compile_once(kind: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = mlp(kind)
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for rows in (3, 5, 8, 13):
        x = torch.randn(rows, WIDTH)
        torch.testing.assert_close(gradients(model, compiled(x)), gradients(model, model(x)), rtol=0, atol=0)
    assert counter.frame_count == 1


@both
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(kind: str, backend: str) -> None:
    torch.compiler.reset()
    model, x = mlp(kind), torch.randn(ROWS, WIDTH)
    output = torch.compile(model, backend=backend, fullgraph=True)(x)
    assert torch.equal(output, model(x))
    torch.testing.assert_close(gradients(model, output), gradients(model, model(x)), rtol=0, atol=0)


@both
def test_a_compiled_model_holds_what_an_eager_one_does(kind: str) -> None:
    """In one graph: a public question to PyTorch, answered wrongly by dynamo, once took the saving away on 2.8."""
    torch.compiler.reset()
    compiled = torch.compile(mlp(kind), backend="aot_eager", fullgraph=True)
    edges = 8 if kind == "gated" else 0  # zeros, which the compiler makes again in backward
    assert saved_memory(compiled, torch.randn(ROWS, WIDTH)).bytes == HELD[kind] - edges


@both
def test_several_threads_forward_and_backward(kind: str) -> None:
    model = mlp(kind)
    xs = [torch.randn(ROWS + i, WIDTH) for i in range(16)]
    wanted = [gradients(model, model(x)) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: gradients(model, model(x)), xs))
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("function", [optiacts.silu, optiacts.swiglu])
def test_one_graph_run_backward_from_two_threads(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(64, 64, requires_grad=True)
    y = function(x)
    threads = [threading.Thread(target=lambda: y.sum().backward(retain_graph=True)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (once,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(x.grad, 2 * once)


def _gradient_in_child(function: Callable[[Tensor], Tensor], x: Tensor) -> list[float]:
    return torch.autograd.grad(function(x.requires_grad_()).sum(), x)[0].tolist()


def test_multiprocessing() -> None:
    """Spawned: after a fork, PyTorch's own autograd hangs (its DataLoader's workers, forked, are tested below)."""
    x = torch.randn(100)
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        for function in (optiacts.gelu, optiacts.swiglu):
            wanted = _gradient_in_child(function, x.clone())
            assert pool.apply(_gradient_in_child, (function, x.clone())) == wanted


class _Gradients(torch.utils.data.Dataset[Tensor]):
    """Large enough for threads: computed in a DataLoader's worker."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        x = torch.full((100_000,), float(index) - 2, requires_grad=True)
        return torch.autograd.grad(self.function(x).sum(), x)[0]


@pytest.mark.parametrize("function", [optiacts.silu, optiacts.swiglu])
def test_dataloader_workers(function: Callable[[Tensor], Tensor]) -> None:
    gradients = _Gradients(function)
    torch.autograd.grad(function(x := torch.randn(500_000, requires_grad=True)).sum(), x)  # starts the threads
    loader = torch.utils.data.DataLoader(gradients, num_workers=2, batch_size=None)
    assert [round(float(g[-1]), 3) for g in loader] == [round(float(gradients[i][-1]), 3) for i in range(4)]


@pytest.mark.usefixtures("two_threads")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.autograd.grad(function(x).sum(), x)[0]

    # where PyTorch's own forward does not: in halves of rows its stretches must end on whole vectors
    cases = ((optiacts.gelu, (3, 100_003)), (optiacts.swiglu, (4, 1 << 17)))
    for dtype, (function, shape) in itertools.product((torch.float32, torch.bfloat16, torch.float16), cases):
        x = torch.randn(shape).to(dtype).requires_grad_()
        several = gradient(function, x)
        torch.set_num_threads(1)
        assert torch.equal(several, gradient(function, x))
        torch.set_num_threads(2)


LAYER_NORM = nn.LayerNorm(16)
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "activation": optiacts.gelu,
    "gated": lambda h: optiacts.swiglu(h, h.flip(0)),
    "gated halves": lambda h: optiacts.swiglu(torch.cat([h, h.flip(0)], -1)),
    "dropped": lambda h: optiacts.activation_dropout(h, "silu", 1e-9),
    "glu": lambda h: optiacts.glu(torch.cat([h, h.flip(0)], -1)),
    "layer_norm": lambda h: optiacts.layer_norm(h, (16,)),
    "rms_norm": lambda h: optiacts.rms_norm(h, (16,)),
    "chain": lambda h: optiacts.norm_activation(h, LAYER_NORM, "silu"),
}


@pytest.mark.parametrize("backend", ["aot_eager", without_kernels], ids=["aot_eager", "partitioned"])
@pytest.mark.parametrize("layer", IN_PLACE)
def test_compiled_an_output_may_be_changed_in_place(layer: str, backend: Any) -> None:
    """Eager that is an error. Of a compiled Function that saves its output PyTorch says nothing."""
    torch.compiler.reset()
    weight = (torch.randn(16, 16) / 4).requires_grad_()

    def run(x: Tensor, in_place: bool) -> Tensor:
        y = IN_PLACE[layer](x @ weight)
        y = y.add_(1) if in_place else y + 1
        return y @ weight

    x = torch.randn(32, 16)
    found, due = (
        torch.autograd.grad(torch.compile(run, backend=backend)(x, in_place).square().sum(), weight)[0]
        for in_place in (True, False)
    )
    torch.testing.assert_close(found, due)
