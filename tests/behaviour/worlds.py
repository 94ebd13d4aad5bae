"""The situations in which an original and its conversion must do the same."""

from __future__ import annotations

import contextlib
import copy
import pickle
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules import module as module_globals
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from tests.behaviour.case import Case
from tests.behaviour.effects import note

Remade = Callable[[nn.Module], nn.Module]


def _same(value: Any) -> Any:
    return value


def _call(model: nn.Module, *args: Any) -> Any:
    return model(*args)


@dataclass(frozen=True)
class World:
    name: str
    before: Remade = _same  # what happens to a model before it is converted
    after: Remade = _same  # and after
    around: Callable[[Case, nn.Module], AbstractContextManager[Any]] = lambda case, model: nullcontext()
    inputs: Callable[[tuple[Any, ...]], tuple[Any, ...]] = _same
    call: Callable[..., Any] = _call
    built: Callable[[], AbstractContextManager[Any]] = nullcontext  # entered while it is built and converted
    steps: int = 2
    dtype: torch.dtype | None = None  # of model and inputs
    exact: bool = True  # outputs have the same bits
    # Activations in a row: their errors in 16 bits add up. Over 200 seeds of a chain of seven, ours over PyTorch's
    # error had the median 1.00 and was above 2 for 10; PyTorch's own, with inputs moved by half an ulp, was so for
    # 15.
    in_a_row: int = 1
    coarse: bool = False  # 16 bits are involved: gradients are as good as these
    slack: float = 1.2e-4  # of float32 gradients: an input near a curve's minimum may be off by 1.2e-4 by contract
    keeps_saving: bool = False
    tool: bool = False  # refuses some models; what it says of an original that it refuses does not matter
    refusal: str = ""  # a tool may refuse a converted model if its error says this

    def __str__(self) -> str:
        return self.name


def _each(change: Callable[[nn.Module], Any]) -> Remade:
    def changed(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            change(module)
        return model

    return changed


# --- hooks ---


def _scaled(value: Any, factor: float = 1.25) -> Any:
    return tree_map(lambda t: t * factor if isinstance(t, Tensor) and t.is_floating_point() else t, value)


def _forward_hook(module: nn.Module, args: Any, output: Any) -> Any:
    note("after", type(module).__name__)
    return _scaled(output)


def _pre_hook(module: nn.Module, args: Any) -> Any:
    note("before", type(module).__name__)
    return _scaled(args, 0.75)


def _backward_hook(module: nn.Module, given: Any, arriving: Any) -> Any:
    note("backward", type(module).__name__)
    return tuple(g if g is None else g * 1.5 for g in given)


def _hooked(module: nn.Module) -> None:
    module.register_forward_hook(_forward_hook)
    module.register_forward_pre_hook(_pre_hook)


@contextlib.contextmanager
def _global_hooks(case: Case, model: nn.Module) -> Any:
    handles = [
        module_globals.register_module_forward_hook(_forward_hook),
        module_globals.register_module_forward_pre_hook(_pre_hook),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _global_backward_hook(case: Case, model: nn.Module) -> Any:
    handle = module_globals.register_module_full_backward_hook(_backward_hook)
    try:
        yield
    finally:
        handle.remove()


# --- other changes ---


def _forward_put_on(module: nn.Module) -> None:
    """As accelerate does: the instance gets a forward that calls the one it had."""
    old = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        note("instance", type(module).__name__)
        return _scaled(old(*args, **kwargs))

    module.forward = forward  # type: ignore[method-assign]


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def _parametrized(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        parametrize.register_parametrization(module, "weight", Halved())


def _is_activation(value: Any) -> bool:
    home = getattr(value, "__module__", "") or ""
    return callable(value) and home in ("torch.nn.modules.activation", "transformers.activations", "torch._C._nn")


def _replaced(module: nn.Module) -> None:
    for name, child in [*module.named_children(), *vars(module).items()]:
        if isinstance(child, nn.Module) and _is_activation(child):
            setattr(module, name, nn.Tanh())
        elif _is_activation(child):
            setattr(module, name, torch.tanh)


@contextlib.contextmanager
def _changed(case: Case, model: nn.Module) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if case.change is not None:
            case.change(model, patch)
        yield


def _materialized(model: nn.Module) -> nn.Module:
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view(tensor.shape))
    return model


def _too_wide(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tree_map(
        lambda v: torch.cat([v, v[..., :1]], -1) if isinstance(v, Tensor) and v.is_floating_point() else v, args
    )


# --- other ways to call ---


def _in_threads(model: nn.Module, *args: Any) -> Any:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: model(*args), range(4)))


def _over_a_batch(model: nn.Module, *args: Any) -> Any:
    first, *rest = args
    return torch.func.vmap(lambda x: model(x, *rest), randomness="same")(torch.stack([first, first * 2]))


def _functional_gradient(model: nn.Module, *args: Any) -> Any:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, args).square().mean()

    return torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()})


def _compiled(model: nn.Module, *args: Any) -> Any:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    output = torch.compile(model, backend=counter, fullgraph=True)(*args)
    note("graphs", counter.frame_count)
    return output


def _traced(model: nn.Module, *args: Any) -> Any:
    return torch.jit.trace(model, args, check_trace=False)(*args)


def _scripted(model: nn.Module, *args: Any) -> Any:
    return torch.jit.script(model)(*args)


def _exported(model: nn.Module, *args: Any) -> Any:
    return torch.export.export(model, args).module()(*args)


_BF16 = partial(torch.autocast, "cpu", torch.bfloat16)


@contextlib.contextmanager
def _autocast_switched_off() -> Any:
    with _BF16(), torch.autocast("cpu", enabled=False):
        yield


PLAIN = World("train", slack=4e-6, keeps_saving=True)  # no input of a case lies there
CHANGED = World("changed later", around=_changed)

EVERYWHERE = [
    PLAIN,
    World("eval", before=nn.Module.eval),
    World("eval, trained later", before=nn.Module.eval, after=nn.Module.train, keeps_saving=True),
    World("no_grad", around=lambda case, model: torch.no_grad()),
    World("inference_mode", around=lambda case, model: torch.inference_mode()),
    World("autocast", around=lambda case, model: _BF16(), coarse=True),
    World("autocast off inside on", around=lambda case, model: _autocast_switched_off()),
    World("input too wide", inputs=_too_wide),
    World("forward hooks", after=_each(_hooked), steps=1),
    World("deepcopied", after=copy.deepcopy, keeps_saving=True, steps=1),
    World("checkpointed", call=partial(checkpoint, use_reentrant=False), tool=True),
]

# What was put on the modules matters where something is converted.
WHERE_CONVERTED = [
    World("bfloat16", after=nn.Module.bfloat16, dtype=torch.bfloat16, coarse=True),
    World("float64", after=nn.Module.double, dtype=torch.float64, steps=1),
    World("forward hooks before", before=_each(_hooked), steps=1),
    World("backward hooks", after=_each(lambda m: m.register_full_backward_hook(_backward_hook)), steps=1),
    World("global hooks", around=_global_hooks, steps=1),
    World("forwards put on", after=_each(_forward_put_on), steps=1),
    World("forwards put on before", before=_each(_forward_put_on), steps=1),
    World("activations replaced", after=_each(_replaced), steps=1),
    World("parametrized", after=_each(_parametrized), steps=1),
    World("pickled", after=lambda model: pickle.loads(pickle.dumps(model)), tool=True, keeps_saving=True, steps=1),
]

# Two ways into the same code of ours, for one case. Each case takes one of the two, chosen by its name: both are
# taken by half of the cases, and every two pairs in all four ways. `make zoo` takes both for all.
KINDRED = [
    ("eval", "eval, trained later"),
    ("no_grad", "inference_mode"),
    ("autocast", "autocast off inside on"),
    ("forward hooks", "forward hooks before"),
    ("deepcopied", "pickled"),
    ("bfloat16", "float64"),
    ("backward hooks", "global hooks"),
    ("forwards put on", "forwards put on before"),
    ("activations replaced", "parametrized"),
]

# These take long, or only say something about chosen cases.
TOOLS = [
    World("checkpointed, reentrant", call=partial(checkpoint, use_reentrant=True), tool=True),
    World("on meta first", built=lambda: torch.device("meta"), after=_materialized, tool=True, keeps_saving=True),
    World("global backward hook", around=_global_backward_hook),
    World("two threads", call=_in_threads, steps=1, tool=True),
    World("vmap", call=_over_a_batch, tool=True),
    World("functorch grad", call=_functional_gradient, exact=False, tool=True),
    World("compiled", call=_compiled, tool=True, steps=1),
    World("jit.trace", call=_traced, tool=True, steps=1, refusal="revert"),
    World("jit.script", call=_scripted, tool=True, steps=1, refusal="revert"),
    World("export", call=_exported, tool=True, steps=1),
]


def worlds_of(case: Case, both_of_a_kind: bool) -> list[World]:
    worlds = [*EVERYWHERE, *(WHERE_CONVERTED if case.saves else []), *([CHANGED] if case.change else [])]
    if both_of_a_kind:
        return worlds
    there = {world.name for world in worlds}
    number = zlib.crc32(case.name.encode())
    left_out = {pair[number >> place & 1] for place, pair in enumerate(KINDRED) if there.issuperset(pair)}
    return [world for world in worlds if world.name not in left_out]
