"""What a process of its own runs: the first calls happen in each situation, and print the gradients of later ones."""

import contextlib
import json
import os
import traceback
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import optiacts
from optiacts import backends

Function = Callable[[Tensor], Tensor]
FUNCTIONS: tuple[Function, ...] = (optiacts.gelu, optiacts.swiglu)
DTYPES = (torch.float32, torch.bfloat16)


def sample(dtype: torch.dtype) -> Tensor:
    return torch.tensor([[i / 8 - 4 for i in range(64)]] * 2, dtype=dtype, device="cpu", requires_grad=True)


def gradient(function: Function, dtype: torch.dtype) -> Tensor:
    x = sample(dtype)
    y = function(x)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


def within(context: contextlib.AbstractContextManager[object]) -> Callable[[Function, torch.dtype], Tensor]:
    def first(function: Function, dtype: torch.dtype) -> Tensor:
        with context:
            return gradient(function, dtype)

    return first


def backward_within(context: contextlib.AbstractContextManager[object]) -> Callable[[Function, torch.dtype], Tensor]:
    """Where no graph is made: the first call there is a backward."""

    def first(function: Function, dtype: torch.dtype) -> Tensor:
        x = sample(dtype)
        with torch.enable_grad():
            y = function(x)
        with context:
            return torch.autograd.grad(y, x, torch.ones_like(y))[0]

    return first


class Default(contextlib.AbstractContextManager[object]):
    def __init__(self, setter: Callable[[object], None], value: object, usual: object) -> None:
        self.setter, self.value, self.usual = setter, value, usual

    def __enter__(self) -> None:
        self.setter(self.value)

    def __exit__(self, *error: object) -> None:
        self.setter(self.usual)


def compiled(function: Function, dtype: torch.dtype) -> Tensor:
    torch.compiler.reset()
    return gradient(torch.compile(function, backend="aot_eager", fullgraph=True), dtype)


def transformed(function: Function, dtype: torch.dtype) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda x: function(x).sum()))(sample(dtype).detach())


SITUATIONS = {
    "nothing": gradient,
    "device": within(torch.device("meta")),
    "default_device": within(Default(torch.set_default_device, "meta", None)),
    "default_float16": within(Default(torch.set_default_dtype, torch.float16, torch.float32)),
    "default_float64": within(Default(torch.set_default_dtype, torch.float64, torch.float32)),
    "fake": within(FakeTensorMode()),
    "autocast": within(torch.autocast("cpu", torch.bfloat16)),
    "no_grad": backward_within(torch.no_grad()),
    "inference_mode": backward_within(torch.inference_mode()),
    "compiled": compiled,
    "transformed": transformed,
}
ANOTHER_RESULT = ("fake", "autocast")  # no numbers, or in another dtype


def every_backend() -> Iterator[None]:
    before = backends.select, backends.select_gated
    backends.select = backends.select_gated = lambda x, curve, scaled=False: backends.eager
    yield
    backends.select, backends.select_gated = before
    yield


def afterwards(situation: str) -> list[object]:
    cases = [(function, dtype) for function in FUNCTIONS for dtype in DTYPES]
    first = [SITUATIONS[situation](*case) for _ in every_backend() for case in cases]
    torch.compiler.reset()
    then = [gradient(*case) for _ in every_backend() for case in cases]
    assert situation in ANOTHER_RESULT or all(map(torch.equal, first, then)), "another result at first"
    return [result.tolist() for result in then]


def in_a_process_of_its_own(situation: str) -> str:
    """What it prints, or its error. It is forked off this one, which has imported all and called nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told = json.dumps(afterwards(situation))
        except BaseException:
            told = traceback.format_exc()
        with os.fdopen(writing, "w") as to:
            to.write(told)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as of:
        told = of.read()
    os.waitpid(child, 0)
    return told


def main() -> None:
    torch.compiler.reset()  # imports the compiler once for all of them
    print(json.dumps({situation: in_a_process_of_its_own(situation) for situation in SITUATIONS}))
