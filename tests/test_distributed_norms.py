"""Norms on two gloo processes: DTensors, DDP, FSDP2, sequence parallel. Gradients as of float64, bytes per rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from optiacts import saved_memory
from optiacts.norms import Norm
from optiacts.ops import norm_channels
from tests.processes import WORLD, two_processes

pytestmark = pytest.mark.filterwarnings("ignore")  # the distributed package warns about its own parts

ROWS, SEQUENCE, WIDTH = 4, 6, 64


class WrittenOut(nn.Module):
    """An RMSNorm as models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


Case = tuple[Callable[..., Tensor], Norm, int]  # the norm, what it is, and how many parameters it has


def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (WORLD,))


# --- DTensors ---


def converted(module: nn.Module) -> Callable[..., Tensor]:
    """The forward of a converted norm as a function of its input and its parameters."""
    optiacts.convert(module)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        module.weight = nn.Parameter(weight) if not isinstance(weight, nn.Parameter) else weight
        if bias is not None:
            module.bias = nn.Parameter(bias) if not isinstance(bias, nn.Parameter) else bias
        return module(x)

    return call


def norms() -> Iterator[Case]:
    yield lambda x, w, b: optiacts.layer_norm(x, (WIDTH,), w, b), Norm(True, 1e-5), 2
    yield lambda x, w: optiacts.rms_norm(x, (WIDTH,), w, 1e-6), Norm(False, 1e-6), 1
    yield converted(WrittenOut(WIDTH)), Norm(False, 1e-6), 1
    yield converted(nn.LayerNorm(WIDTH)), Norm(True, 1e-5), 2


def spread(x: Tensor, placement: Any) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if placement.is_partial():  # each rank holds its half of the sum
        return DTensor.from_local(x / WORLD, mesh(), [placement])
    return distribute_tensor(x, mesh(), [placement])


def parameters(count: int, dead: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(WIDTH, generator=generator) + 0.5
    weight[:dead] = 0.0
    return [weight, torch.randn(WIDTH, generator=generator) / 4][:count]


def check_dtensor(case: Case, x: Tensor, placement: Any, by: Any, ours: bool, dead: int = 0, on: Any = None) -> None:
    from torch.distributed.tensor import Replicate

    norm, kind, count = case
    given = parameters(count, dead)
    exact = [t.double().requires_grad_() for t in (x, *given)]
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    y = kind.reference(exact[0], exact[1], exact[2] if count == 2 else None)
    truth = torch.autograd.grad(y, exact, grad.double())

    part = spread(x, placement).requires_grad_()
    shared = [nn.Parameter(spread(t, on or Replicate())) for t in given]
    output = norm(part, *shared)
    assert ("OptiActsNorm" in output.grad_fn.name()) == ours, (placement, output.grad_fn)
    plain = norm(x.clone().requires_grad_(), *(nn.Parameter(t) for t in given))
    torch.testing.assert_close(output.full_tensor(), plain, rtol=0 if ours else 1e-5, atol=0 if ours else 1e-5)
    if ours:
        assert output.placements == part.placements and output.shape == x.shape
    found = torch.autograd.grad(output, [part, *shared], spread(grad, by))
    for a, b, like in zip(found, truth, (x, *given), strict=True):
        assert a.shape == like.shape
        assert (a.full_tensor().double() - b).norm() < 3e-6 * b.norm(), (placement, by)


def dtensors(rank: int) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    x = torch.randn(ROWS, SEQUENCE, WIDTH, generator=torch.Generator().manual_seed(0))
    for case in norms():
        for placement in (Shard(0), Shard(1), Replicate()):
            check_dtensor(case, x, placement, placement, ours=True)
        for by in (Shard(1), Shard(2), Replicate(), Partial()):  # the gradient may lie elsewhere
            check_dtensor(case, x, Shard(0), by, ours=True)
        for rows in (5, 1):  # one rank has more rows than the other, or all of them
            check_dtensor(case, x.flatten(0, 1)[:rows], Shard(0), Shard(0), ours=True)
        for dead in (1, WIDTH // 2):  # rescued; of too many the input is kept
            check_dtensor(case, x, Shard(1), Shard(1), ours=True, dead=dead)
    layer_norm, _, llama, _ = norms()
    check_dtensor(llama, x, Shard(2), Shard(2), ours=False)
    check_dtensor(layer_norm, x, Shard(2), Replicate(), ours=False)
    check_dtensor(layer_norm, x, Partial(), Shard(0), ours=False)
    check_dtensor(layer_norm, x, Shard(0), Shard(0), ours=False, on=Shard(0))  # a sharded weight

    mixed = [torch.ones(WIDTH, requires_grad=True), torch.ones(WIDTH)]
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):  # PyTorch's own
        layer_norm[0](distribute_tensor(x, mesh(), [Shard(0)]), *mixed)


def held(rank: int) -> None:
    """Each rank holds its share of the output, which the Linear after it shares; twice differentiable; guarded."""
    from torch.distributed.tensor import Replicate, Shard

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.norm(x))

    net, original = Net(), Net()
    optiacts.convert(net)
    for model in (net, original):
        for module in (model.norm, model.linear):
            for name, parameter in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(spread(parameter.detach(), Replicate())))
    x = torch.randn(ROWS, SEQUENCE, WIDTH, generator=torch.Generator().manual_seed(0))
    part = spread(x, Shard(0))
    share = ROWS // WORLD * SEQUENCE
    bytes_held = saved_memory(net, part).bytes
    assert bytes_held == 4 * share * WIDTH + 4 * share + 2 * 4 * WIDTH  # y, rstd, weight and bias as they are
    assert saved_memory(original, part).bytes - bytes_held == 4 * share * WIDTH + 4 * share - 2 * 4 * WIDTH

    def penalty(model: Net, x: Any) -> list[Tensor]:
        x = x.requires_grad_()
        (dx,) = torch.autograd.grad(model.norm(x).square().mean(), x, create_graph=True)
        found = torch.autograd.grad(dx.square().sum(), [x, model.norm.weight])
        return [t.full_tensor() if hasattr(t, "full_tensor") else t for t in found]

    for dead in (0, WIDTH // 2):  # in input mode as well
        plain = Net()
        with torch.no_grad():
            plain.norm.weight[:dead] = 0.0
        net.norm.weight = nn.Parameter(spread(plain.norm.weight.detach(), Replicate()))
        for a, b in zip(penalty(net, spread(x, Shard(0))), penalty(plain, x.clone()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)

    net.norm.weight = nn.Parameter(spread(torch.ones(WIDTH), Replicate()))
    y = net.norm(part.detach().requires_grad_())
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(optiacts.OverwrittenError):
        y.sum().backward()


# --- wrappers ---


class Block(nn.Module):
    """Norms of several kinds; one of them is called twice, and two share their weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = WrittenOut(WIDTH), nn.LayerNorm(WIDTH), WrittenOut(WIDTH)
        self.third.weight = self.first.weight
        self.into, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            for norm in (self.first, self.second):
                norm.weight.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.into(self.first(x))
        x = x + self.out(functional.silu(self.into(self.second(x))))
        return self.out(self.third(self.second(x)))


def inputs() -> Tensor:
    return torch.randn(ROWS, SEQUENCE, WIDTH, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    net.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = net(x).float().square().mean()
    loss.backward()
    named = {n.removeprefix("module."): p.grad for n, p in net.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in named.items()} | {"": loss.detach()}


def near(found: dict[str, Tensor], truth: dict[str, Tensor], bound: float = 5e-6) -> None:
    assert found.keys() == truth.keys()
    for name, b in truth.items():
        assert (found[name].double() - b.double()).norm() <= bound * b.double().norm(), name


def as_good(found: dict[str, Tensor], other: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    def error(gradients: dict[str, Tensor]) -> float:
        return sum(float((gradients[n].double() - b).norm() / b.norm()) ** 2 for n, b in truth.items())

    assert error(found) < 1.05**2 * error(other)


def ddp(rank: int) -> None:
    net = Block()
    optiacts.convert(net, autocast=True)
    wrapped = nn.parallel.DistributedDataParallel(net)
    part = inputs().chunk(WORLD)[rank].clone()
    found = gradients(wrapped, part)
    dist.all_reduce(found[""])
    found[""] /= WORLD
    near(found, gradients(Block().double(), inputs().double()))
    alone = Block()
    optiacts.convert(alone)
    assert saved_memory(wrapped, part).bytes == saved_memory(alone, part).bytes < saved_memory(Block(), part).bytes
    # under autocast too
    exact, original = (nn.parallel.DistributedDataParallel(net) for net in (Block().double(), Block()))
    ours, theirs = (gradients(model, part, torch.bfloat16) for model in (wrapped, original))
    assert torch.equal(ours[""], theirs[""])
    as_good(ours, theirs, gradients(exact, part.double()))


def fsdp(rank: int) -> None:
    """Weights are there only while they are used. Half of a weight is 0, all of it on one rank."""
    from torch.distributed.fsdp import fully_shard

    def alone(convert: bool, dead: bool) -> nn.Module:
        net = nn.Sequential(Block(), Block())
        if dead:
            nn.init.zeros_(net[0].second.weight[: WIDTH // 2])  # type: ignore[arg-type, union-attr, index]
        if convert:
            optiacts.convert(net, autocast=True)
        return net

    def made(convert: bool, dead: bool, together: bool, exact: bool = False) -> nn.Module:
        net: Any = alone(convert, dead)
        net = net.double() if exact else net
        for block in net if not together else ():
            fully_shard(block, mesh=mesh())
        return fully_shard(net, mesh=mesh())

    part = inputs().chunk(WORLD)[rank].clone()
    for dead, together in ((False, False), (True, False), (True, True)):
        net, plain = made(True, dead, together), made(False, dead, together)
        # PyTorch's own model tells: PyTorch 2.8 adds gradients on gloo and does not divide them
        near(gradients(net, part), gradients(plain, part))
        less = saved_memory(plain, part).bytes - saved_memory(net, part).bytes
        assert less == saved_memory(alone(False, dead), part).bytes - saved_memory(alone(True, dead), part).bytes > 0
        ours, theirs = gradients(net, part, torch.bfloat16), gradients(plain, part, torch.bfloat16)
        assert torch.equal(ours[""], theirs[""])
        as_good(ours, theirs, gradients(made(False, dead, together, exact=True), part.double()))


def where_the_host_does_not_wait(rank: int) -> None:
    """As on a GPU, with an optimizer whose steps make channels bad: each is seen before it is relied on."""
    from torch.distributed.fsdp import fully_shard

    norm_channels.waits = lambda device: True  # this process runs nothing else
    net, plain = Block(), Block()
    optiacts.convert(net)
    part = inputs().chunk(WORLD)[rank].clone()
    optimizers = []
    for model in (net, plain):
        fully_shard(model, mesh=mesh())
        optimizers.append(torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(4):
        near(gradients(net, part), gradients(plain, part), 5e-6 * 4**step)
        for model, optimizer in zip((net, plain), optimizers, strict=True):
            optimizer.step()
            with torch.no_grad():  # channels die, those of one rank alone, unseen
                weight = model.second.weight.to_local()
                if rank == 1:
                    weight[: 8 * step + 1] = 0.0
    assert any(known.keep_output for known in norm_channels._known.values())
    assert not all(known.keep_output for known in norm_channels._known.values())


def sequence_parallel(rank: int) -> None:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.rms = nn.LayerNorm(WIDTH), WrittenOut(WIDTH)
            self.into, self.out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
            with torch.no_grad():
                self.norm.weight.uniform_(0.5, 1.5)
                self.rms.weight.uniform_(0.5, 1.5)  # with ones hardly a gradient goes through

        def forward(self, x: Tensor) -> Tensor:
            return self.rms(self.out(self.into(self.norm(x))))

    net = Net()
    optiacts.convert(net)
    plan = {
        "norm": SequenceParallel(),
        "into": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Shard(1),)),
        "out": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        "rms": SequenceParallel(),
    }
    plan["into"] = ColwiseParallel(input_layouts=Shard(1), use_local_output=False)
    parallelize_module(net, mesh(), plan)
    part = inputs().chunk(WORLD, dim=1)[rank].clone()
    y = net.norm(part)
    assert "OptiActsNorm" in y.grad_fn.name()
    loss = net(part).full_tensor().square().mean()
    loss.backward()
    found = {n: p.grad.full_tensor() for n, p in net.named_parameters()} | {"": loss.detach()}
    near(found, gradients(Net().double(), inputs().double()))
    rows = ROWS * SEQUENCE // WORLD
    assert saved_memory(net.norm, part).bytes == 4 * rows * WIDTH + 4 * rows + 2 * 4 * WIDTH


def dtensors_and_sequence_parallel(rank: int) -> None:
    dtensors(rank)
    held(rank)
    sequence_parallel(rank)


def ddp_and_fsdp(rank: int) -> None:
    ddp(rank)
    fsdp(rank)
    where_the_host_does_not_wait(rank)


CHECKS: list[Any] = [dtensors_and_sequence_parallel, ddp_and_fsdp]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_two_processes(check: Callable[[int], None]) -> None:
    two_processes(check)
