"""What a case is: a module, its inputs, and what its conversion must achieve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

HIDDEN = 4 * 32 * 4  # bytes of one hidden tensor of the modules in parts.py, for the inputs below

Change = Callable[[Any, pytest.MonkeyPatch], Any]  # given the model; what is not the model's is undone by the patch


def sample(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 16)), generator=torch.Generator().manual_seed(5))


def one_input() -> tuple[Any, ...]:
    return (sample(),)


@dataclass(frozen=True)
class Case:
    """A module that is hostile in one way. With neither ``saves`` nor ``left`` only sameness matters."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]] = one_input
    saves: float = 0  # at least so many hidden tensors; nothing where nobody else keeps the activation's output
    left: str = ""  # nothing is saved, and the report gives a reason in which this pattern is found
    may_raise: bool = False  # only running shows the clash: an error that names module and remedy is right, too
    change: Change | None = None  # what somebody does after the conversion
    tools: bool = False  # also run in the slow worlds: compile, export, jit
    invalid: bool = False  # PyTorch raises, and not everywhere: it is run as it is alone
    slack: float = 0  # of float32 gradients, where its inputs need more than the world's
    coarse: bool = False  # it computes in 16 bits, whatever the world
    leaf: bool = False  # the inputs themselves require gradients, not copies of them
    hidden: int = HIDDEN

    def __str__(self) -> str:
        return self.name


CASES: list[Case] = []


def add(name: str, make: Callable[[], nn.Module], **expectation: Any) -> None:
    same = sum(case.name.partition(" #")[0] == name for case in CASES)
    CASES.append(Case(f"{name} #{same + 1}" if same else name, make, **expectation))


def case(*args: Any, **expectation: Any) -> Callable[[type], type]:
    """Declares a module class, built with ``args``, as a case."""

    def declare(kind: type) -> type:
        home = kind.__module__.rpartition("cases_")[2]
        tail = "".join(f" {getattr(a, '__name__', a)}" for a in args)
        add(f"{home}: {kind.__name__}{tail}", lambda: kind(*args), **expectation)
        return kind

    return declare
