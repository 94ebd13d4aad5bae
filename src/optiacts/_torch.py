"""Every private or version-dependent fact about PyTorch that the core rests on: one fact each, and why we ask.

PyTorch's C functions are bound as they are, since a call takes them some microseconds in all. Where a PyTorch
lacks a name, what stands in its place is right, but takes the slow way. tests/test_torch_facts.py holds each
fact to its meaning, on PyTorch 2.8, the oldest one supported, as on the newest.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad
from torch.fx import traceback as fx_traceback
from torch.nn.modules import module as _modules
from torch.utils import _python_dispatch

P = ParamSpec("P")
T = TypeVar("T")
Fact = tuple[Any, str | None, Any]


def _is_exporting() -> bool:
    return torch.compiler._is_exporting_flag


is_exporting = _is_exporting if hasattr(torch.compiler, "_is_exporting_flag") else torch.compiler.is_exporting
"""Whether torch.export traces, strictly or not: an exported program keeps to PyTorch's own ops.

The flag behind the public ``torch.compiler.is_exporting``: in PyTorch 2.8 dynamo takes that function for
True in every ``torch.compile``, but reads and guards the flag as it is.
"""


def _bound(name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """The C function ``torch._C.<name>``, or ``otherwise`` where there is none."""
    try:
        return operator.attrgetter(name)(torch._C)
    except AttributeError:
        LACKING.append(name)
        return otherwise


LACKING: list[str] = []
"""The names of ``torch._C`` that this PyTorch has not."""


trace_frames: Callable[[Any], Any] = _bound("_dynamo.eval_frame.set_eval_frame", lambda callback: None)
"""Sets what sees each frame of Python on this thread before it runs, a compiler or, None, nobody; gives what did."""


transforms_active: Callable[[], bool] = _bound("_are_functorch_transforms_active", lambda: True)
"""Whether a torch.func transform (vmap, grad, jvp) is running: Functions then need the way around them."""

is_transformed: Callable[[Tensor], bool] = _bound("_functorch.is_functorch_wrapped_tensor", lambda tensor: True)
"""Whether a tensor is a transform's wrapper: one can outlive its transform, or come out of it as a saved tensor."""

mode_count: Callable[[], int] = _bound("_len_torch_dispatch_stack", lambda: 1)
"""How many dispatch modes (fake tensors, selective checkpointing) are entered and want to see every op."""


class Onlooker(_python_dispatch.TorchDispatchMode):
    """A dispatch mode that runs every op as it is and is told of it, and under which nothing is compiled.

    PyTorch's guard against compilation costs as much as all it does. Half of what reaches it are questions for the
    device of a fake tensor. That tensor answers at once, and the modes below are not asked.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and is_fake(args[0]):
            return type(args[0]).__torch_dispatch__(func, types, args)
        output = func(*args, **(kwargs or {}))
        if isinstance(output, (Tensor, tuple, list)):
            self.ran(func, args, kwargs or {}, output)
        return output

    def ran(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """What a subclass does after an op with a tensor, or several, for its ``output``."""
        raise NotImplementedError


_DEVICE = torch.ops.prim.device.default


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device. PyTorch raises for meta tensors, which it is never on for."""
    return device != "meta" and torch.is_autocast_enabled(device)


any_autocast: Callable[[], bool] = _bound("_is_any_autocast_enabled", lambda: True)
"""Whether autocast is on for any type of device."""


class FakeMode(FakeTensorMode):
    """A mode of fake tensors, such as may meet real ones, without PyTorch's guard against compilation.

    The guard stands around each op, and costs a tenth of it. The code inside is PyTorch's, which is never compiled.
    """

    padded = False  # whether a real attention mask had padding: fake ones have no values

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    __torch_dispatch__ = FakeTensorMode.dispatch

    def end(self) -> None:
        """From here on its tensors meet real ones with an error: what they make of those has no values either."""
        self.allow_non_fake_inputs = False
        self.__class__ = _Ended


class _Ended(FakeMode):
    """Its error says where such a tensor may come from."""

    def validate_and_convert_non_fake_tensors(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().validate_and_convert_non_fake_tensors(*args, **kwargs)
        except AssertionError as error:
            raise RuntimeError(
                "optiacts: a tensor without values meets real ones. A run of optiacts.report or "
                "convert(example_inputs=...) made it, and code of the model keeps it outside of the model, as in a "
                "dict or in an attribute of a class. Empty that; a forward before such a run avoids it"
            ) from error


class _Unlike:
    """Dispatch keys that are unlike any others, also themselves."""

    @staticmethod
    def raw_repr() -> float:
        return float("nan")


profiled: Callable[[], bool] = _bound("_autograd._profiler_enabled", lambda: True)
"""Whether a profiler records this thread, and wants to see every op by its name."""

dispatch_keys: Callable[[Tensor], Any] = _bound("_dispatch_keys", lambda tensor: _Unlike)
"""A tensor's dispatch keys, ``.raw_repr()`` of them as a number: whoever wants to see an op has put one there."""


def plain_keys(on_cuda: bool) -> int:
    """The dispatch keys of a tensor that is nothing but one, as a number."""
    keys: int = _keys_of(on_cuda)
    return keys


# What says that somebody looks on, as (object, name of an attribute, or None to call it, what it says if nobody does)

NOT_COMPILING: Fact = (
    (torch.compiler, "_is_compiling_flag", False)
    if hasattr(torch.compiler, "_is_compiling_flag")
    else (torch.compiler.is_compiling, None, False)
)
"""No compiler traces. The flag behind the public function, outside of TorchScript."""

NOT_EXPORTING: Fact = (
    (torch.compiler, "_is_exporting_flag", False)
    if hasattr(torch.compiler, "_is_exporting_flag")
    else (torch.compiler.is_exporting, None, False)
)

NO_FORWARD_MODE: Fact = (
    (forward_ad, "_current_level", -1) if hasattr(forward_ad, "_current_level") else (lambda: True, None, False)
)


def _sets(method: str) -> str:
    """The one attribute that a method of a Function's context sets to what it is given; empty if it does more."""
    names = getattr(torch.autograd.function.FunctionCtx, method).__code__.co_names
    return names[0] if len(names) == 1 else ""


SAVES, MATERIALIZES = _sets("save_for_backward"), _sets("set_materialize_grads")
"""What ``ctx.save_for_backward(*tensors)`` and ``ctx.set_materialize_grads(value)`` set, two calls of Python."""

EXCHANGE: Any = getattr(Tensor, "__dlpack_c_exchange_api__", None)
"""What tells C programs all of a tensor at once, as DLPack has it; None in a PyTorch that has not."""

EMPTY_ON_CPU: Callable[[Any, Any, torch.dtype], Tensor] | None = getattr(
    torch._C._dynamo.guards, "_empty_strided_cpu", None
)
"""``torch.empty_strided(shape, strides, dtype=dtype)`` in half the time, as Inductor's code makes its memory."""


def is_one_of_several_views(view: Tensor) -> bool:
    """Whether a view came with others from one op (``chunk``, ``unbind``): PyTorch forbids changing such in place."""
    return _creation(view) != _ALONE


_creation: Callable[[Tensor], Any] = _bound("_autograd._get_creation_meta", lambda tensor: None)
_ALONE: Any = _bound("_autograd.CreationMeta.DEFAULT", lambda: None)


def computed_once(compute: Callable[P, T]) -> Callable[P, T]:
    """``compute``, of whose steps a tracing compiler computes none again in backward: as of an op.

    The mark is the one that selective checkpointing puts on what it keeps.
    """

    @functools.wraps(compute)
    def marked(*args: P.args, **kwargs: P.kwargs) -> T:
        from torch.fx.experimental.proxy_tensor import get_proxy_mode
        from torch.utils.checkpoint import CheckpointPolicy

        mode = get_proxy_mode()
        if mode is None:  # not yet the graph, but the shapes alone
            return compute(*args, **kwargs)
        nodes = mode.tracer.graph.nodes
        before = len(nodes)
        result = compute(*args, **kwargs)
        for node in itertools.islice(reversed(nodes), len(nodes) - before):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        return result

    return marked


def register_traced(name: str, run: Callable[[tuple[Any, ...]], Any], library: Any) -> None:
    """Has a tracing compiler call ``run(args)`` in place of the op ``name``; it stays where that returns None.

    What ``run`` does is traced. It may work in place: this is before the compiler has taken that apart.
    """

    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        with mode:
            found = run(args)
        return mode.__torch_dispatch__(op, types, args, kwargs or {}) if found is None else found

    torch.library.register_torch_dispatch(name, FunctionalTensorMode, rule, lib=library)


def chooses_ops() -> bool:
    """Whether a compiler traces what is checkpointed: an op may tell then whether its results are kept.

    That is where checkpointing is selective, but PyTorch 2.13 has one way for both kinds.
    """
    return "recompute" in fx_traceback.current_meta


H = TypeVar("H", bound=Callable[..., Any])


def looking_on(hook: H) -> H:
    """Marks a hook of ours on all modules, which changes nothing: nobody has to call a module for its sake."""
    hook.optiacts_looks_on = True  # type: ignore[attr-defined]
    return hook


def watches_all_modules() -> bool:
    """Whether somebody has hooks on every module's calls, our own onlookers aside."""
    if not any(_global_hooks):
        return False
    return any(not hasattr(hook, "optiacts_looks_on") for hooks in _global_hooks for hook in hooks.values())


_global_hooks: tuple[dict[int, Any], ...] = tuple(
    getattr(_modules, f"_global_{kind}", {})
    for kind in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
)


def seen(module: Any) -> bool:
    """Whether somebody sees a call of ``module`` alone, or replaced what it does: then it has to be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or ("forward" in module.__dict__ and _replaces_forward(module))
    )


def _replaces_forward(module: Any) -> bool:
    """Whether a ``forward`` on the instance is another than its class's: who takes a wrapper off leaves that one."""
    kept = module.__dict__["forward"]
    return getattr(kept, "__func__", None) is not type(module).forward


def watched(module: Any) -> bool:
    """Whether somebody sees a call of ``module``, or replaced what it does: then it has to be called."""
    return seen(module) or watches_all_modules()


function_modes: Callable[[], int] = _bound("_len_torch_function_stack", lambda: 0)
"""How many torch function modes (``torch.device(...)`` is one) are entered; they see all calls of its functions."""

function_mode: Callable[[int], Any] = _bound("_get_function_stack_at", lambda index: None)
"""The mode at a place in that stack."""


def known_to_compilers(function: H) -> H:
    """Marks a function whose result never changes: a compiler calls it, rather than trace it.

    What ``torch.compiler.assume_constant_result`` sets, which loads the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def without_grad(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A call under ``torch.no_grad``, whose context takes as long as a small norm."""
    enabled = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        return function(*args, **kwargs)
    finally:
        torch._C._set_grad_enabled(enabled)


def saved_tensors_hooks() -> Any:
    """The hooks that are put on all saved tensors now (pack, unpack), or None."""
    return top_saved_tensors_hooks(False)


top_saved_tensors_hooks: Callable[[bool], Any] = _bound(
    "_autograd._top_saved_tensors_default_hooks", lambda ignore: None
)
"""The same as a function of C, which wants to know whether to ignore that a compiler traces."""


def forward_mode() -> bool:
    """Whether a forward-mode level (``torch.func.jvp``, ``hessian``, ``dual_level``) is open, compilers aside."""
    return not torch.compiler.is_compiling() and forward_level() >= 0


def forward_level() -> int:
    """How many forward-mode levels are open, less one; 0 where PyTorch does not tell."""
    return getattr(forward_ad, "_current_level", 0)


def run(function: type[torch.autograd.Function], input: Tensor, *args: Any) -> Any:
    """``function.apply(input, *args)``, faster where neither a compiler nor torch.func looks on.

    ``Function.apply`` binds default arguments with ``inspect`` on every call, which takes half as long as a whole
    small activation. Outside transforms nothing else happens before its base class's ``apply``.
    """
    if torch.compiler.is_compiling():
        return function.apply(input, *(arg.view_as(arg) if arg is input else arg for arg in args))  # none twice
    if transforms_active() or is_transformed(input):
        return function.apply(input, *args)
    return base_apply(function)(input, *args)


def base_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for whoever knows already that nobody looks on: see ``run``."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


_no_dispatch_modes: Callable[[], Any] = _bound(
    "_DisableTorchDispatch", lambda: _python_dispatch._disable_current_modes()
)
"""Puts dispatch modes aside; what stands in its place imports the modes of all compilers."""


def undisturbed(make: Callable[P, T]) -> Callable[P, T]:
    """``make``, always as if it were called outside any mode.

    Tensors from within ``torch.device("meta")`` would have no values, those from FakeTensorMode would be fake, and
    those from ``torch.inference_mode`` lack dispatch keys.
    """

    @functools.wraps(make)
    def outside(*args: P.args, **kwargs: P.kwargs) -> T:
        with (
            _no_dispatch_modes(),
            torch._C.DisableTorchFunction(),  # a default device is a mode as well
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            return make(*args, **kwargs)

    return outside


def once(make: Callable[P, T]) -> Callable[P, T]:
    """``functools.cache`` for what is made with tensors, ``undisturbed``: they stay for the rest of the process."""
    return functools.cache(undisturbed(make))  # type: ignore[return-value]


def register_sharding(op: Any) -> Callable[[Callable[..., Any]], Any]:
    """DTensor's registration of how an op may be sharded: experimental, and too slow to import early."""
    from torch.distributed.tensor.experimental import register_sharding

    return register_sharding(op)


@once
def _keys_of(on_cuda: bool) -> int:
    return dispatch_keys(torch.empty(0, device="cuda" if on_cuda else "cpu")).raw_repr()


PLAIN = (Tensor, torch.nn.Parameter)
"""The types of tensors that are nothing but one."""

TRACERS = frozenset(
    ("torch._subclasses.fake_tensor.FakeTensor", "torch._subclasses.functional_tensor.FunctionalTensor")
)
"""The tensor types of tracing, which stand for a plain tensor, by full name: importing them takes long."""


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor only stands for one, and has no values to look at."""
    kind = type(tensor)
    return kind not in PLAIN and f"{kind.__module__}.{kind.__name__}" in TRACERS


_owners: Callable[[int], int] = _bound("_storage_Use_Count", lambda storage: 0)


def is_alone(tensor: Tensor) -> bool:
    """Whether no other tensor shares the memory of ``tensor``, as far as PyTorch tells."""
    storage = tensor.untyped_storage()
    return _owners(storage._cdata) == _owners_of_one()


@once
def _owners_of_one() -> int:
    """How many owners PyTorch counts of what one tensor has, while somebody asks; -1 where it cannot tell."""
    one = torch.empty(1)
    storage = one.untyped_storage()
    alone = _owners(storage._cdata)
    other = one.detach()
    return alone if _owners(storage._cdata) == alone + other.numel() else -1


def is_capturing(device: torch.device) -> bool:
    """Whether a graph (CUDA's, XPU's) is being captured, during which the host must not wait for the device."""
    if device.type == "cuda":
        return torch.cuda.is_current_stream_capturing()
    return device.type == "xpu" and getattr(torch.xpu, "is_current_stream_capturing", lambda: False)()


def functions_of_op(name: str) -> tuple[Callable[..., Any], ...]:
    """The callables, public ones aside, that run an aten op such as ``"aten::silu"``: users' code may hold any."""
    name = name.partition("::")[2]
    packet, bound = getattr(torch.ops.aten, name), getattr(torch._C._nn, name, None)
    return (packet, packet.default) if bound is None else (packet, packet.default, bound)


def op_defaults(name: str) -> dict[str, Any]:
    """The default values of the arguments of an aten op."""
    schema = getattr(torch.ops.aten, name.partition("::")[2]).default._schema
    return {a.name: a.default_value for a in schema.arguments if a.has_default_value()}


def statistics_of(normed: Tensor, input: Tensor) -> tuple[Tensor, Tensor] | None:
    """The mean and rstd that PyTorch's norm keeps for its backward, found in the graph; None where they are not.

    Of a batch norm in evaluation there are none. ``input`` is the norm's: what is behind it belongs to other norms.
    """
    node: Any = normed.grad_fn
    behind = input.grad_fn
    for _ in range(4):  # an instance norm views its result, and autocast casts it
        if node is None or node is behind:
            return None
        if node.name().startswith(_KEEPING):
            mean, rstd = getattr(node, "_saved_result1", None), getattr(node, "_saved_result2", None)
            return (mean, rstd) if mean is not None and rstd is not None and rstd.numel() else None
        node = node.next_functions[0][0] if node.next_functions else None
    return None


_KEEPING = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm", "NativeLayerNorm")


def next_node_number() -> int:
    """The number of the graph node that autograd makes next on this thread: later nodes have larger numbers."""
    return int(torch._C._autograd._get_sequence_nr())


def current_node_number() -> int | None:
    """The number of the graph node whose derivative is being computed; None outside of backward."""
    node = torch._C._current_autograd_node()
    return None if node is None else node_number(node)


def node_number(node: Any) -> int:
    """The number of a graph node: those made later on a thread have larger ones."""
    return int(node._sequence_nr())


def saved_in(node: Any) -> list[Any] | None:
    """What a graph node keeps, nothing of it unpacked: each has ``data``, and an ``unpack_hook`` if hooks packed it.

    None where the node does not tell: a change in place of a view, a C++ extension's, an older PyTorch.
    """
    names = _saved_names(node.__class__)
    if names is None:
        return None
    found: list[Any] = []
    for name in names:
        kept = getattr(node, name)
        found += kept if isinstance(kept, tuple) else (kept,)
    return found


@functools.cache
def _saved_names(kind: type) -> tuple[str, ...] | None:
    """C++ nodes have an attribute for each tensor, Python Functions a tuple; others no class of their own."""
    told = hasattr(getattr(torch._C._autograd, "SavedTensor", None), "unpack_hook")
    if not told or kind.__name__ in ("CopySlices", "CppFunction"):
        return None
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def is_wrapped_number(tensor: Tensor) -> bool:
    """Whether a tensor is a Python number of an expression: it gives way to any dtype of its kind. Hooks miss it."""
    least = _LEAST.get(tensor.dtype)
    return tensor.ndim == 0 and least is not None and torch.result_type(tensor, _zero(least)) == least


_LEAST = {torch.float64: torch.float16, torch.int64: torch.int8, torch.complex128: torch.complex32}


@once
def _zero(dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype)
