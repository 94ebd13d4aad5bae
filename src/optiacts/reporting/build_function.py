"""A person's own function that returns a model and its inputs."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from optiacts.reporting.errors import ReportError
from optiacts.reporting.setting import DTYPES, Built, Setting, brief


def from_function(name: str, setting: Setting) -> Built:
    """The model and the inputs that ``module:function`` makes.

    It is called with those of ``batch``, ``seq``, ``image_size``, ``dtype`` and ``attention`` that were said. One
    that it cannot do without has the usual value, or is asked for.
    """
    function, accepted = _imported(name)
    given = _arguments(name, accepted, setting)
    try:
        with fake_parameters_convert():
            result = function(**given)
    except Exception as error:
        called = ", ".join(f"{key}={value}" for key, value in given.items()) or "nothing"
        raise ReportError(
            f"{name}: the function failed ({brief(error)}); it is called with {called} on fake tensors"
        ) from error
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], torch.nn.Module)):
        parts = ", ".join(type(part).__name__ for part in result) if isinstance(result, tuple) else ""
        raise ReportError(
            f"{name}: must return (model, inputs), a module and its inputs; got a {type(result).__name__}"
            + f" of {parts}" * bool(parts)
        )
    model, inputs = result
    words = {key: str(value).removeprefix("torch.") for key, value in given.items()}
    words |= {"autocast": "bfloat16"} if setting.autocast else {}
    words |= {"train mode": setting.training}
    if "batch" in words:
        words["batch"] += " samples"
    if isinstance(inputs, Mapping):
        return Built(model, (), dict(inputs), words)
    return Built(model, inputs if isinstance(inputs, tuple) else (inputs,), {}, words)


def _imported(name: str) -> tuple[Callable[..., Any], Mapping[str, inspect.Parameter]]:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), attribute)
        return function, inspect.signature(function).parameters
    except Exception as error:
        raise ReportError(
            f"{name}: cannot be imported ({brief(error)}); give module:function, importable from {Path.cwd()}"
        ) from error


def _arguments(name: str, accepted: Mapping[str, inspect.Parameter], setting: Setting) -> dict[str, Any]:
    said: dict[str, Any] = {"batch": setting.batch, "seq": setting.seq, "image_size": setting.image_size}
    said |= {"dtype": setting.dtype, "attention": setting.attention}
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    for option, value in said.items():
        if value is not None and not takes_all and option not in accepted:
            raise ReportError(f"{name}: --{_spelled(option)} was given, but the function has no parameter {option!r}")
    if setting.overrides or not setting.loss or setting.tokens:
        option = "--set" if setting.overrides else "--tokens" if setting.tokens else "--no-loss"
        raise ReportError(f"{name}: {option} is for models with a config; let the function make the model so")
    given: dict[str, Any] = {option: value for option, value in said.items() if value is not None}
    usual = {"batch": setting.samples, "dtype": setting.weights}
    for option, parameter in accepted.items():
        if parameter.default is not parameter.empty or option in given:
            continue
        if option in usual:
            given[option] = usual[option]
        elif option in said:
            raise ReportError(f"{name}: the function wants {option!r}; give --{_spelled(option)}")
    if "dtype" in given:
        given["dtype"] = DTYPES[given["dtype"]]
    return given


def _spelled(option: str) -> str:
    return option.replace("_", "-")


@contextmanager
def fake_parameters_convert() -> Iterator[None]:
    """Lets ``module.to(dtype)`` work where parameters are fake tensors.

    PyTorch swaps those with their converted selves, and refuses to swap what has a weak reference, as fake
    parameters do. They have no data, so that taking over the metadata is the same.
    """
    swap = torch.utils.swap_tensors

    def swapped(old: Tensor, new: Tensor) -> None:
        if isinstance(old, FakeTensor) and isinstance(new, FakeTensor):
            old.data = new.detach()
        else:
            swap(old, new)

    torch.utils.swap_tensors = swapped
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap
