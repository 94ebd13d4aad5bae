"""What optimizers hold and take: run for a step on fake parameters, as they are."""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts.held.memory import local_tensors
from optiacts.held.timeline import Recorder
from optiacts.reporting import names

_BLOCK = 256  # of bitsandbytes: elements that share a scale
_SMALLEST = 4096  # elements; it keeps fewer in float32


class Cost(NamedTuple):
    """Bytes: of the state that stays, and the most that a step takes besides while it runs."""

    state: int
    temporary: int


class MasterAdamW(torch.optim.Optimizer):
    """AdamW on float32 copies of the parameters, as mixed-precision trainers keep them for 16-bit weights."""

    def __init__(self, params: Any, foreach: bool | None = None) -> None:
        super().__init__(params, {})
        self._given = [p for group in self.param_groups for p in group["params"]]
        self._masters = [p if p.itemsize >= 4 else torch.nn.Parameter(p.detach().float()) for p in self._given]
        self._inner = torch.optim.AdamW(self._masters, foreach=foreach)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for given, master in zip(self._given, self._masters, strict=True):
            if master is not given:
                master.grad = given.grad.float()
        self._inner.step()
        for given, master in zip(self._given, self._masters, strict=True):
            state = self.state[given]
            state.update(self._inner.state[master])
            if master is not given:
                given.copy_(master)
                master.grad, state["master"] = None, master


class AdamW8bit(torch.optim.Optimizer):
    """The state of bitsandbytes' AdamW8bit: two moments of a byte, and a float32 scale for each 256 elements of each.

    Its kernel changes the parameter in place and takes nothing besides. (Only sizes: this one does not learn.)
    """

    def __init__(self, params: Any, foreach: bool | None = None) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                small = p.numel() < _SMALLEST
                dtype = torch.float32 if small else torch.uint8
                for moment in ("state1", "state2"):
                    if moment not in self.state[p]:
                        self.state[p][moment] = torch.empty(p.shape, dtype=dtype)
                        if not small:
                            self.state[p][f"{moment}, scales"] = torch.empty(-(-p.numel() // _BLOCK))


Make = Callable[[list[Any], "bool | None"], torch.optim.Optimizer]

# By name, made of the parameters and of whether they go through the multi-tensor kernels, as on CUDA by default.
_MAKE: dict[str, Make] = {
    "adamw": lambda params, foreach: torch.optim.AdamW(params, foreach=foreach),  # moments in the parameter's dtype
    "adamw-fused": lambda params, foreach: torch.optim.AdamW(params, fused=True),
    "adamw-fp32": lambda params, foreach: MasterAdamW(params, foreach=foreach),
    "adamw-8bit": lambda params, foreach: AdamW8bit(params),
    "sgd": lambda params, foreach: torch.optim.SGD(params, lr=0.1, foreach=foreach),
    "sgd-momentum": lambda params, foreach: torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=foreach),
}

OPTIMIZERS = {name: _MAKE[name] for name in names.OPTIMIZERS}

_ONE_BY_ONE = ("adamw-8bit",)  # how large a parameter is matters to its state


def cost(trained: Iterable[Tensor], name: str, like_cuda: bool) -> Cost:
    """What the optimizer called ``name`` costs for the parameters ``trained``: of its second step, on fake copies.

    CUDA's multi-tensor kernels take all parameters of a dtype at once: one with as many elements stands for them.
    """
    shapes = [(tuple(local.shape), local.dtype) for p in trained for local in local_tensors(p)]
    if like_cuda and name not in _ONE_BY_ONE:
        elements: Counter[torch.dtype] = Counter()
        for shape, dtype in shapes:
            elements[dtype] += math.prod(shape)
        shapes = [((count,), dtype) for dtype, count in elements.items()]
    return _cost(tuple(shapes), name, like_cuda)


@functools.lru_cache(maxsize=64)
def _cost(key: tuple[tuple[tuple[int, ...], torch.dtype], ...], name: str, like_cuda: bool) -> Cost:
    if not key:
        return Cost(0, 0)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = [torch.nn.Parameter(torch.empty(shape, dtype=dtype)) for shape, dtype in key]
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer = OPTIMIZERS[name](params, True if like_cuda else None)
        optimizer.step()
        state = {id(t): t for held in optimizer.state.values() for t in held.values() if isinstance(t, Tensor)}
        recorder = Recorder(torch.nn.Module())
        recorder.tell([*params, *(p.grad for p in params if p.grad is not None), *state.values()], "given")
        with recorder.watching():
            optimizer.step()
        levels = recorder.timeline.levels()
        before = levels[recorder.timeline.given - 1]
        return Cost(sum(t.nbytes for t in state.values() if t.ndim), max(levels) - before)
