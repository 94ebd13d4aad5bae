"""A training step of a converted model on fake tensors, before the model itself is touched.

It shows what no reading of the functions can: outputs of activations that nobody keeps, outputs that are changed in
place by what runs later, and how many bytes are saved. It takes no memory and leaves no trace.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optiacts.conversion.followers import is_linear
from optiacts.conversion.norm_recognition import norm_of
from optiacts.conversion.sites import curve_of
from optiacts.held.fake import (
    Faked,
    autocasting,
    fake_copy,
    forgotten,
    mode_of,
    one_sequence_per_row,
    require_one_dtype,
    unlogged,
)
from optiacts.held.memory import saved_memory
from optiacts.held.sharing import sharing, unkept, unkept_products, without_gain
from optiacts.held.trace import trace
from optiacts.overwritten import OverwrittenError

_MOST = 100  # rounds of finding one more output that is changed in place


@dataclass
class Rehearsal:
    """What came out: why to leave which modules, by path; why which activations gain nothing alone; of each norm, why
    nobody keeps its output, or an empty text if somebody does; the modules whose gated products nobody keeps; and the
    bytes held before and after."""

    reasons: dict[str, str] = field(default_factory=dict)
    no_gain: dict[str, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    products: set[str] = field(default_factory=set)
    saved_bytes: tuple[int, int] = (0, 0)


def rehearse(
    model: Module,
    example_inputs: Any,
    convert: Callable[[Module, Rehearsal], object],
    autocast: bool = False,
    prepare: Callable[[Module], object] = lambda model: None,
) -> Rehearsal:
    """Runs and converts a fake copy of ``model``.

    Args:
        model: the model; it is not touched.
        example_inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        convert: converts a copy, with what was found so far.
        autocast: run it under autocast, in bfloat16 unless it is on already; Linears share its casts.
        prepare: changes a copy, in any case, before it is asked who keeps what.

    Raises:
        ValueError: the model does not run on ``example_inputs``, or not on fake tensors.
    """
    keywords = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
    positional = example_inputs if isinstance(example_inputs, tuple) else () if keywords else (example_inputs,)
    tensors = [leaf for leaf in tree_leaves((positional, keywords)) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if tensors and not tensors[0].shape[0]:
        raise ValueError(
            f"example_inputs: the first has the shape {list(tensors[0].shape)}; give at least one sample"
        )
    found = Rehearsal()
    with _no_trace():
        try:
            copied, args, kwargs = fake_copy(model, positional, keywords)
            with _training(copied, (args, kwargs), autocast):
                with _OneDtype():
                    before = saved_memory(copied, *args, **kwargs)
                _backward(before.output)
                prepare(copied)
                sites = sharing(_followed, copied, *args, **kwargs)
                found.no_gain = without_gain(tuple(site for site in sites if site.activation != _NORM))
                linears = {path for path, module in copied.named_modules() if autocast and is_linear(module)}
                found.norms = unkept(tuple(site for site in sites if site.activation == _NORM), frozenset(linears))
        except Exception as error:
            raise ValueError(_explained(error)) from error
        for _ in range(_MOST):
            copied, args, kwargs = fake_copy(model, positional, keywords)
            with _training(copied, (args, kwargs), autocast):
                convert(copied, found)
                try:
                    after = trace(_followed, copied, *args, **kwargs)
                    _backward(after.output)
                except OverwrittenError as error:
                    paths = error.paths_in(copied) - found.reasons.keys()
                    if not paths:
                        raise
                    found.reasons |= dict.fromkeys(paths, "its output is changed in place by what runs later")
                else:
                    more = unkept_products(after) - found.products
                    if not more:
                        break
                    found.products |= more
        found.saved_bytes = before.bytes, after.bytes
    return found


_NORM = "norm"


def _followed(module: Module) -> str | None:
    """What is followed: the curve of an activation, or that it is a norm."""
    return curve_of(module) or (_NORM if norm_of(module) is not None else None)


@contextlib.contextmanager
def _training(model: Module, values: Any, autocast: bool) -> Iterator[None]:
    """What a step on fake tensors runs in."""
    dtype = torch.bfloat16 if autocast else None
    fake = mode_of(model, values)
    with torch.enable_grad(), autocasting(model, values, dtype), fake, one_sequence_per_row(), Faked():
        yield


class _OneDtype(TorchDispatchMode):
    """Raises where a matrix product of two dtypes would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        require_one_dtype(func._schema.name, args)
        return func(*args, **(kwargs or {}))


def _backward(output: Any) -> None:
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if leaves:
        torch.autograd.backward(leaves, [torch.ones_like(leaf) for leaf in leaves])


def _explained(error: Exception) -> str:
    line = " ".join(str(error).split())[:300] or "no message"
    return (
        f"example_inputs: on fake tensors like them the model raises {type(error).__name__}: {line}; where they fit "
        "and it is the model that needs real tensors, convert without them"
    )


@contextlib.contextmanager
def _no_trace() -> Iterator[None]:
    """Puts the random states back, those of Python and NumPy as well, and leaves no fake tensors behind."""
    numpy = sys.modules.get("numpy")
    python, numbers = random.getstate(), numpy.random.get_state() if numpy is not None else None
    try:
        with unlogged(), forgotten(), torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numbers)
