"""Two gloo processes on CPU: DDP, FSDP2, tensor and sequence parallel. Losses as on one process, savings per rank."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import optiacts
from optiacts import saved_memory
from tests.processes import WORLD, two_processes

pytestmark = pytest.mark.filterwarnings("ignore")  # the distributed package warns about its own parts

ROWS, WIDTH, HIDDEN = 8, 16, 64


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), optiacts.GELU(), nn.Linear(HIDDEN, WIDTH))


def inputs() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    loss = net(x).square().mean()
    loss.backward()
    return loss.detach(), [p.grad for p in net.parameters() if p.grad is not None]


def ddp(rank: int) -> None:
    wrapped = nn.parallel.DistributedDataParallel(model())
    part = inputs().chunk(WORLD)[rank].clone()
    loss, gradients = loss_and_gradients(wrapped, part)
    dist.all_reduce(loss)
    wanted, truth = loss_and_gradients(model(), inputs())
    torch.testing.assert_close(loss / WORLD, wanted)
    torch.testing.assert_close(gradients, truth)
    rows = ROWS // WORLD
    assert saved_memory(wrapped, part).bytes == rows * (WIDTH * 4 + HIDDEN * 4 + HIDDEN // 8)


def fsdp(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    net, plain = model(), model()
    plain[1] = nn.GELU()  # type: ignore[index]
    fully_shard(net, mesh=mesh)
    fully_shard(plain, mesh=mesh)
    part = inputs().chunk(WORLD)[rank].clone()
    loss, gradients = loss_and_gradients(net, part)
    # PyTorch's own model tells: PyTorch 2.8 adds gradients on gloo and does not divide them
    wanted, truth = loss_and_gradients(plain, part)
    torch.testing.assert_close(loss, wanted)
    for ours, theirs in zip(gradients, truth, strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor())  # type: ignore[attr-defined]
    rows = ROWS // WORLD
    saved = saved_memory(plain, part).bytes - saved_memory(net, part).bytes
    assert saved == rows * HIDDEN * 4 - rows * HIDDEN // 8


def tensor_parallel(rank: int, local: bool, sequence: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    net, mesh = model(), init_device_mesh("cpu", (WORLD,))
    layout = {"input_layouts": Shard(0)} if sequence else {}
    into = ColwiseParallel(use_local_output=local, **layout)
    out = RowwiseParallel(**({"output_layouts": Shard(0)} if sequence else {}))
    parallelize_module(net, mesh, {"0": into, "2": out})
    x = inputs().chunk(WORLD)[rank] if sequence else inputs()

    hidden = net[0](x)
    assert isinstance(hidden, DTensor) != local
    assert "Activation" in type(net[1](hidden).grad_fn).__name__
    total = net(x).square().sum()
    total.backward()
    if sequence:
        dist.all_reduce(total.detach_())
    reference = model()
    wanted = reference(inputs()).square().sum()
    wanted.backward()
    torch.testing.assert_close(total.detach(), wanted.detach())
    torch.testing.assert_close(net[0].weight.grad.full_tensor(), reference[0].weight.grad)

    share = HIDDEN // WORLD  # each rank holds its share of the hidden tensor once, and its bits
    held = saved_memory(net[1], hidden).bytes
    assert held == ROWS * share * 4 + ROWS * share // 8


def awkward_shards_take_pytorchs_path(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))
    whole = torch.linspace(-3, 3, 120).reshape(6, 20)  # no closer than 0.02 to the minimum
    for placement, ours in ((Shard(1), False), (Shard(0), True), (Replicate(), True)):
        x = distribute_tensor(whole, mesh, [placement]).requires_grad_()
        y = optiacts.gelu(x)
        assert ("Activation" in type(y.grad_fn).__name__) == ours
        y.sum().backward()
        plain = whole.clone().requires_grad_()
        optiacts.gelu(plain).sum().backward()
        torch.testing.assert_close(x.grad.full_tensor(), plain.grad, rtol=0, atol=2e-5)  # type: ignore[union-attr]


class SwiGLUMLP(nn.Module):
    """Llama's, without biases, as the plans for tensor parallelism expect it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.product = optiacts.SwiGLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.product(self.gate(x), self.up(x)))


def gated_tensor_parallel(rank: int, local: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    net, mesh = SwiGLUMLP(), init_device_mesh("cpu", (WORLD,))
    column = ColwiseParallel(use_local_output=local)
    parallelize_module(net, mesh, {"gate": column, "up": column, "down": RowwiseParallel()})
    x, reference = inputs(), SwiGLUMLP()
    gate, up = net.gate(x), net.up(x)
    assert isinstance(gate, DTensor) != local
    assert "Gated" in type(net.product(gate, up).grad_fn).__name__
    total, wanted = net(x).square().sum(), reference(x).square().sum()
    total.backward()
    wanted.backward()
    torch.testing.assert_close(total.detach(), wanted.detach())
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad)  # type: ignore[union-attr]

    share = HIDDEN // WORLD  # h, the slot and two bits per element of the share; the edges are one float each
    held = saved_memory(net.product, gate, up).bytes
    assert held == 2 * ROWS * share * 4 + 2 * ROWS * share // 8 + 2 * 4


def gated_tensor_parallel_local(rank: int) -> None:
    gated_tensor_parallel(rank, local=True)


def gated_tensor_parallel_dtensor(rank: int) -> None:
    gated_tensor_parallel(rank, local=False)


def gated_shards_of_every_kind(rank: int) -> None:
    """Whichever way the inputs and the gradient are sharded, the results are those of whole tensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh, generator = init_device_mesh("cpu", (WORLD,)), torch.Generator().manual_seed(2)
    rows, columns, whole = Shard(0), Shard(1), Replicate()

    def spread(x: Tensor, placement: Any) -> Tensor:
        if placement.is_partial():  # each rank holds its half of the sum
            return DTensor.from_local(x / WORLD, mesh, [placement]).requires_grad_()
        return distribute_tensor(x, mesh, [placement]).requires_grad_()

    def check(output: Tensor, parts: list[Tensor], wholes: list[Tensor], weight: Tensor, by: Any, ours: bool) -> None:
        assert ("Gated" in type(output.grad_fn).__name__) == ours
        plain = optiacts.swiglu(*wholes)
        wanted = torch.autograd.grad(plain, wholes, weight)
        got = torch.autograd.grad(output, parts, spread(weight, by).detach())
        torch.testing.assert_close(output.full_tensor(), plain)  # type: ignore[attr-defined]
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a.full_tensor(), b, rtol=0, atol=2e-5)  # type: ignore[attr-defined]

    for width in (20, 32):  # 10 columns per rank are no whole bytes
        for by in (rows, columns, whole, Partial()):
            weight = torch.randn(6, width, generator=generator)
            pair = [torch.randn(6, width, generator=generator, requires_grad=True) for _ in range(2)]
            for one, other, ours in (
                (rows, rows, True),
                (whole, whole, True),
                (columns, columns, width == 32),
                (columns, whole, False),
                (rows, columns, False),
                (Partial(), Partial(), False),
            ):
                parts = [spread(t.detach(), p) for t, p in zip(pair, (one, other), strict=True)]
                check(optiacts.swiglu(*parts), parts, pair, weight, by, ours)
            both = torch.randn(6, 2 * width, generator=generator, requires_grad=True)
            for placement in (rows, whole, columns):
                part = spread(both.detach(), placement)
                check(optiacts.swiglu(part), [part], [both], weight, by, True)


def tensor_parallel_local(rank: int) -> None:
    tensor_parallel(rank, local=True, sequence=False)


def tensor_parallel_dtensor(rank: int) -> None:
    tensor_parallel(rank, local=False, sequence=False)


def sequence_parallel_dtensor(rank: int) -> None:
    tensor_parallel(rank, local=False, sequence=True)


CHECKS: list[Any] = [
    ddp,
    fsdp,
    tensor_parallel_local,
    tensor_parallel_dtensor,
    sequence_parallel_dtensor,
    awkward_shards_take_pytorchs_path,
    gated_tensor_parallel_local,
    gated_tensor_parallel_dtensor,
    gated_shards_of_every_kind,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_two_processes(check: Callable[[int], None]) -> None:
    two_processes(check)
