"""One method at work: its losses, what it holds, and the time of its steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import allocated
from benchmarks.frontier.methods import Method
from benchmarks.frontier.models import SEED, Model

_SUMS = 64  # of a sketch: its norm is right to about a tenth


@dataclass(frozen=True)
class Setting:
    """Where and how everything is run."""

    device: str = "cpu"
    dry: bool = False
    threads: int = 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def backend(self) -> str:
        """Of torch.compile. A dry run needs no C++ compiler: partitioned and run by PyTorch's own ops."""
        return "aot_eager_decomp_partition" if self.dry else "inductor"


@dataclass(frozen=True)
class Found:
    """What is the same in every step, or of the first one."""

    loss: float
    sketch: tuple[float, ...]  # of the gradients: ``apart`` tells how far two methods' are from each other
    held: int  # bytes
    peak: int


def apart(one: Found, other: Found) -> float:
    """About the norm of the difference of their gradients, over that of ``one``'s."""
    ours, theirs = (torch.tensor(found.sketch, dtype=torch.float64) for found in (one, other))
    return float((ours - theirs).norm() / ours.norm())


class Contender:
    """A model in training: forward, backward and SGD's step, with the same dropouts in each method."""

    def __init__(self, model: Model, method: Method, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        self._cuda = setting.device == "cuda"
        size = model.size(setting.device, setting.dry)
        layers = model.layers(size).to(setting.device, setting.dtype)
        stack = method.stack(layers, setting.dry).train()
        self._x, self._wanted = (
            torch.randn(size.shape, device=setting.device).to(setting.dtype) for _ in ("input", "output")
        )
        self._optimizer = torch.optim.SGD(stack.parameters(), lr=1e-4)
        self._budgeted, self._run = method.budgeted, method.compiled(stack, setting.backend)

    def found(self) -> Found:
        """Runs the first steps, in which everything is compiled."""
        with self._budgeted():
            loss = self._forward()
            loss.backward()
            sketch = _sketch([p.grad for group in self._optimizer.param_groups for p in group["params"]])
            self._end()
        self.step()
        if self._cuda:
            torch.cuda.empty_cache()  # for the others
        held, peak = (allocated.on_cuda if self._cuda else allocated.on_cpu)(self._forward, self._rest)
        return Found(float(loss.detach()), sketch, held, peak)

    def step(self) -> float:
        """Its seconds: of the GPU, or of the processor, which other users of the machine disturb less."""
        if not self._cuda:
            start = time.process_time()
            self._rest(self._forward())
            return time.process_time() - start
        self._rest(self._forward())  # after the others' turns: the clocks, and memory to reuse
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        self._rest(self._forward())
        end.record()
        end.synchronize()
        seconds = begin.elapsed_time(end) / 1e3
        torch.cuda.empty_cache()
        return seconds

    def _forward(self) -> Tensor:
        torch.manual_seed(SEED)  # the same masks in each step of each method
        loss: Tensor = self._run(self._x, self._wanted)
        return loss

    def _rest(self, loss: Tensor) -> None:
        loss.backward()
        self._end()

    def _end(self) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad()


def _sketch(gradients: list[Tensor]) -> tuple[float, ...]:
    """Sums of all numbers with random signs, the same in each method: their norm is about that of the gradients."""
    flat = torch.cat([gradient.flatten().float().cpu() for gradient in gradients])
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % _SUMS))
    signs = torch.randint(2, flat.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.int8)
    return tuple((flat * (2 * signs - 1)).view(-1, _SUMS).sum(0, dtype=torch.float64).tolist())
