"""The ways in which people run `torch.nn.GELU`: ours works in them, with the saving intact."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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

ROWS, WIDTH, HIDDEN = 16, 32, 128
HELD = ROWS * (WIDTH + HIDDEN) * 4 + ROWS * HIDDEN // 8


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), optiacts.GELU(), nn.Linear(HIDDEN, WIDTH))


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().sum(), list(model.parameters())))


def test_save_on_cpu() -> None:
    model, x = mlp(), torch.randn(ROWS, WIDTH)
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


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant: bool) -> None:
    model, x = mlp(), torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = gradients(model, model(x))
    output = checkpoint(model, x, use_reentrant=use_reentrant)
    output.square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], wanted, rtol=0, atol=0)


def test_selective_checkpoint_can_keep_our_op() -> None:
    """A policy that names our op keeps (y, bits), and the rest is computed again."""
    op = torch.ops.optiacts.activation_forward.default
    calls: list[str] = []

    def policy(context: object, function: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        calls.append(str(function))
        return CheckpointPolicy.MUST_SAVE if function is op else CheckpointPolicy.PREFER_RECOMPUTE

    model, x = mlp(), torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = gradients(model, model(x))
    contexts = partial(create_selective_checkpoint_contexts, policy)
    output = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    output.square().sum().backward()
    assert "optiacts.activation_forward.default" in calls
    torch.testing.assert_close([p.grad for p in model.parameters()], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    model, x = mlp(), torch.randn(ROWS, WIDTH)
    with torch.autocast("cpu", dtype):
        output = model(x)
        hidden = model[1](model[0](x))  # type: ignore[index]
        plain = nn.functional.gelu(model[0](x))  # type: ignore[index]
    assert hidden.dtype == dtype and torch.equal(hidden, plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=dtype is torch.float16)
    scaler.scale(output.float().square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_copies_and_pickles() -> None:
    model, x = mlp(), torch.randn(ROWS, WIDTH)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), model(x)) and saved_memory(copied, x).bytes == HELD
    output = optiacts.gelu(torch.randn(3, requires_grad=True))
    assert "Activation" in type(output.grad_fn).__name__


def test_state_dicts_are_exchangeable() -> None:
    plain = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
    ours = mlp()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(ROWS, WIDTH)
    assert torch.equal(ours(x), plain(x)) and list(ours.state_dict()) == list(plain.state_dict())


def test_several_threads_forward_and_backward() -> None:
    model = mlp()
    xs = [torch.randn(ROWS + i, WIDTH) for i in range(16)]
    wanted = [gradients(model, model(x)) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: gradients(model, model(x)), xs))
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_one_graph_run_backward_from_two_threads() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    y = optiacts.silu(x)
    threads = [threading.Thread(target=lambda: y.sum().backward(retain_graph=True)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (once,) = torch.autograd.grad(optiacts.silu(x).sum(), x)
    torch.testing.assert_close(x.grad, 2 * once)


def _gradient_in_child(x: Tensor) -> list[float]:
    return torch.autograd.grad(optiacts.gelu(x.requires_grad_()).sum(), x)[0].tolist()


def test_multiprocessing() -> None:
    """Spawned: after a fork, PyTorch's own autograd hangs (its DataLoader's workers, forked, are tested below)."""
    x = torch.randn(100)
    wanted = _gradient_in_child(x.clone())
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_gradient_in_child, (x.clone(),)) == wanted


class _Gradients(torch.utils.data.Dataset[Tensor]):
    """Large enough for threads: computed in a DataLoader's worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        x = torch.full((100_000,), float(index) - 2, requires_grad=True)
        return torch.autograd.grad(optiacts.silu(x).sum(), x)[0]


def test_dataloader_workers() -> None:
    torch.autograd.grad(optiacts.silu(x := torch.randn(500_000, requires_grad=True)).sum(), x)  # starts the threads
    loader = torch.utils.data.DataLoader(_Gradients(), num_workers=2, batch_size=None)
    assert [round(float(g[-1]), 3) for g in loader] == [round(float(_Gradients()[i][-1]), 3) for i in range(4)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.autograd.grad(function(x).sum(), x)[0]

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(3, 100_003).to(dtype).requires_grad_()
        several = gradient(optiacts.gelu, x)
        torch.set_num_threads(1)
        assert torch.equal(several, gradient(optiacts.gelu, x))
        torch.set_num_threads(2)
