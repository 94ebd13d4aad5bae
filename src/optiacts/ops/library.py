"""How an op is declared, once, and how it is called."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from optiacts import replay
from optiacts._torch import (
    chooses_ops,
    dispatch_keys,
    forward_level,
    function_modes,
    is_exporting,
    mode_count,
    plain_keys,
    profiled,
    register_sharding,
    register_traced,
    saved_tensors_hooks,
    transforms_active,
)
from optiacts.backends.selection import NotTracedError, traceable
from optiacts.layouts import Order
from optiacts.replay import replayed

_library = torch.library.Library("optiacts", "DEF")
_KERNELS: dict[Any, Callable[..., Any]] = {}

# Which dimension of each result and of each tensor argument is sharded together: one pair for each way to do it.
Sharding = Callable[..., Iterable[tuple[Sequence[int], Sequence[int]]]]
_SHARDINGS: list[tuple[Any, Sharding]] = []


def declare(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    sharding: Sharding,
    check: Callable[..., None] | None = None,
    vmap: Callable[..., Any] | None = None,
    any_layout: bool = False,
    traced: Callable[..., Any] | None = None,
) -> Any:
    """Defines the op ``optiacts::<schema>`` and returns it.

    Args:
        kernel: computes it, on any device.
        fake: the same without values: the results' shapes, dtypes and strides.
        sharding: how its tensors may be distributed, besides being whole everywhere: see ``Sharding``.
        check: raises on arguments that must not reach a kernel, real or fake. Takes the arguments of the op.
        vmap: the op on batched tensors, as ``torch.library.register_vmap`` wants it.
        any_layout: what it computes does not hang on how its tensors lie in memory, which a compiler may choose.
        traced: ``kernel`` in operations that a compiler for GPUs sees in the place of the op; see backends/traced.py.
    """
    layout = torch.Tag.flexible_layout if any_layout else torch.Tag.needs_fixed_stride_order
    name = schema.partition("(")[0]
    quick, fake = _checked(check, kernel), _checked(check, fake)
    if "!" not in schema:
        quick = replayed(quick)
    _library.define(schema, tags=(layout, torch.Tag.pt2_compliant_tag))
    torch.library.impl(_library, name, "CompositeExplicitAutograd")(quick)
    torch.library.register_fake(f"optiacts::{name}", fake, lib=_library)
    if traced is not None:
        register_traced(f"optiacts::{name}", _as_traced(_checked(check, traced)), _library)
    if vmap is not None:
        torch.library.register_vmap(f"optiacts::{name}", vmap, lib=_library)
    op = getattr(torch.ops.optiacts, name).default
    _KERNELS[op] = quick
    _SHARDINGS.append((op, sharding))
    return op


def _checked(check: Callable[..., None] | None, kernel: Callable[..., Any]) -> Callable[..., Any]:
    if check is None:
        return kernel

    def run(*args: Any) -> Any:
        check(*args)
        return kernel(*args)

    return run


def _as_traced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """How a compiler traces an op: as the operations of ``kernel``, or, None, as the one that it is."""

    def run(args: tuple[Any, ...]) -> Any:
        if traceable(args[0].device):
            with contextlib.suppress(NotTracedError):
                return kernel(*args)
        return None

    return run


def unless_named(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel`` for a compiler, but where checkpointing may keep the op's results by its name."""

    def run(*args: Any) -> Any:
        if chooses_ops():
            raise NotTracedError
        return kernel(*args)

    return run


def call(op: Any, first: Tensor, second: Any, *more: Any) -> Any:
    """``op(first, second, *more)``, past the dispatcher where nobody can want to see it: some 3 microseconds less.

    A compiler, a profiler or a dispatch mode (fake tensors, selective checkpointing, ...) wants to see it. So does
    whatever puts a key of its own on a tensor: a subclass, a transform, a vmap old or new, a meta device.
    """
    if _nobody_looks_on() and _has_plain_keys(first) and (not isinstance(second, Tensor) or _has_plain_keys(second)):
        return _KERNELS[op](first, second, *more)
    return op(first, second, *more)


def directly(op: Any, *arguments: Any) -> Any:
    """``op(*arguments)``, for whoever knows already that nobody can want to see it: see ``unseen``, ``untouched``."""
    return _KERNELS[op](*arguments)


def is_plain(tensor: Tensor) -> bool:
    """Whether nobody can want to see an op on ``tensor``."""
    return _nobody_looks_on() and _has_plain_keys(tensor)


def _nobody_looks_on() -> bool:
    return not (torch.compiler.is_compiling() or mode_count() or profiled())


def _has_plain_keys(tensor: Tensor) -> bool:
    return bool(dispatch_keys(tensor).raw_repr() == plain_keys(tensor.is_cuda))


def unseen(*tensors: Tensor) -> bool:
    """Whether nobody can want to see what is done with ``tensors``, torch.func and forward mode among them.

    Like ``untouched`` it calls little of Python's: a small activation has to wait for it.
    """
    if torch.compiler.is_compiling() or mode_count() or profiled() or transforms_active() or forward_level() >= 0:
        return False
    for tensor in tensors:  # noqa: SIM110  a generator takes three times as long
        if dispatch_keys(tensor).raw_repr() != plain_keys(tensor.is_cuda):
            return False
    return True


def is_quiet(tensor: Tensor) -> bool:
    """Whether gradients are computed and nobody looks on, hooks on saved tensors and function modes included."""
    if torch.compiler.is_compiling():
        return False
    found = replay.quiet()
    if found is not None:
        return found
    return (
        torch.is_grad_enabled()
        and unseen(tensor)
        and saved_tensors_hooks() is None
        and not function_modes()
        and not is_exporting()
        and torch._C._get_tracing_state() is None
    )


def untouched(ctx: Any, grad: Tensor) -> bool:
    """In backward: whether a kernel may take what was saved unseen: nobody else had it, and nobody looks on."""
    return bool(
        ctx.state is None
        and not torch.is_grad_enabled()
        and forward_level() < 0
        and not torch.compiler.is_compiling()
        and not mode_count()
        and not profiled()
        and dispatch_keys(grad).raw_repr() == plain_keys(grad.is_cuda)
    )


def batched(tensors: tuple[Tensor, ...], dims: tuple[int | None, ...], size: int) -> list[Tensor]:
    """The tensors of a vmap with the batch in front; scalars get a last dimension to pack their bit along."""
    front = [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    return [t.unsqueeze(-1) if t.ndim == 1 else t for t in front]


def batched_order(order: Order) -> list[int]:
    """The memory order of tensors with the batch in front, from that of each."""
    return [0, *(d + 1 for d in order)] if order else []


def places(x: Any, order: Order) -> list[tuple[int, int]]:
    """Each dimension of ``x``, and where it is in what is saved in memory order."""
    return [(d, list(order).index(d) if order else d) for d in range(len(x.shape))]


@functools.cache
def register_shardings() -> None:
    """Tells DTensor about all ops; called when the first one arrives, so that `import optiacts` stays light."""
    from torch.distributed.tensor import Replicate, Shard

    def rule(op: Any, sharding: Sharding) -> Callable[..., Any]:
        def acceptable(*args: Any) -> Any:
            ways = list(sharding(*args))
            others = [None] * (
                len(args) - sum(argument.type.kind() == "TensorType" for argument in op._schema.arguments)
            )
            results, tensors = len(op._schema.returns), len(args) - len(others)
            whole = [Replicate()] * results, [Replicate()] * tensors + others
            return [whole, *(([*map(Shard, out)], [*map(Shard, into), *others]) for out, into in ways)]

        return acceptable

    for op, sharding in _SHARDINGS:
        register_sharding(op)(rule(op, sharding))
