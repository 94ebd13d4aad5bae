"""Fake tensors: a model and its inputs without their memory, and CPU forwards that save what a GPU's would."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from optiacts._torch import FakeMode


def fake_copy(model: torch.nn.Module, *values: Any) -> tuple[Any, ...]:
    """``model`` and ``values`` with fake tensors in place of theirs; the originals stay as they are.

    A model that is fake already comes back itself.
    """
    mode = mode_of(model, values)
    if isinstance(mode, FakeMode):
        mode.padded = any(
            _has_padding(key, kept) for value in values if isinstance(value, Mapping) for key, kept in value.items()
        )
    if not any(isinstance(t, FakeTensor) for t in (*model.parameters(), *model.buffers())):
        with FakeCopyMode(mode):
            model = copy.deepcopy(model)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, Tensor) and not isinstance(value, FakeTensor) else value

    return (model, *(tree_map(fake, value) for value in values))


def _has_padding(name: Any, value: Any) -> bool:
    """Whether an input is an attention mask that masks something, as far as its values are known."""
    mask = str(name).endswith("attention_mask") and isinstance(value, Tensor) and value.ndim == 2
    return mask and not isinstance(value, FakeTensor) and not bool(value.all())


def mode_of(model: torch.nn.Module, values: Any) -> FakeTensorMode:
    """The mode that the first fake tensor of ``model`` or in ``values`` belongs to; a new one if none is fake."""
    for leaf in (*model.parameters(), *model.buffers(), *tree_leaves(values)):
        if isinstance(leaf, FakeTensor):
            return leaf.fake_mode
    mode = FakeMode()
    if _made.modes is not None:
        _made.modes.append(mode)
    return mode


class _Made(threading.local):
    """The modes that this thread has made in the context below; none outside of it."""

    modes: list[FakeMode] | None = None


_made = _Made()


@contextmanager
def forgotten() -> Iterator[None]:
    """What runs on fake tensors inside leaves none of them behind, for a real forward to find.

    Code may keep tensors outside of its module, by shape and dtype as a rule. Caches of ``functools`` that hold fake
    ones are cleared afterwards, and so are gradients of parameters that it takes from elsewhere, as hooks do.
    ``gc.freeze`` hides both. Of any other place an error tells, once they meet real tensors.
    """
    outer, _made.modes = _made.modes, []
    try:
        yield
    finally:
        for mode in _made.modes:
            mode.end()
        _made.modes = outer
        for found in gc.get_objects():
            kind = type(found)
            if kind is functools._lru_cache_wrapper:
                if any(isinstance(kept, FakeTensor) for kept in _kept_by(found)):
                    found.cache_clear()
            elif (kind is torch.nn.Parameter or kind is Tensor) and _has_fake_gradient(found):
                found.grad = None  # there was none before: what is added to a real one leaves no trace


def _has_fake_gradient(tensor: Tensor) -> bool:
    return tensor.is_leaf and tensor.requires_grad and isinstance(tensor.grad, FakeTensor)


def _kept_by(function: functools._lru_cache_wrapper[Any]) -> Iterator[Any]:
    """What a cache of ``functools`` holds: its results, and its arguments."""
    for referent in gc.get_referents(function):
        yield from tree_leaves(list(referent.items()) if type(referent) is dict else referent)


@contextmanager
def unlogged() -> Iterator[None]:
    """Fake tensors log what they raise, with its trace, as well; inside they only raise it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    silent, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = silent


_PRODUCTS = frozenset(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution"))


def require_one_dtype(name: str, args: Any) -> None:
    """Raises where the op ``name`` is a matrix product of two dtypes, as real ones do: fake tensors let it pass."""
    if name in _PRODUCTS:
        dtypes = {value.dtype for value in args if isinstance(value, Tensor)}
        if len(dtypes) > 1:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise RuntimeError(f"{name.removeprefix('aten::')} of different dtypes: {names}")


@contextmanager
def autocasting(model: torch.nn.Module, values: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast in ``dtype`` on the device of ``model`` and ``values``; as it is on already, or without a dtype."""
    tensors = (leaf for leaf in (*model.parameters(), *tree_leaves(values)) if isinstance(leaf, Tensor))
    device = next((tensor.device.type for tensor in tensors), "cpu")
    if dtype is None or torch.is_autocast_enabled(device):
        yield
        return
    with torch.autocast(device, dtype):
        yield


def uncompiled(model: torch.nn.Module) -> AbstractContextManager[Any]:
    """Runs what ``torch.compile`` made of modules in ``model`` as those are: its code has no values to run on."""
    compiled = any(type(module).__name__ == "OptimizedModule" for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


_lock = threading.Lock()
_inside: list[int] = []  # the threads that are in the context below
_originals: dict[str, Any] = {}  # transformers' functions, while others stand in their places
_PACKED, _PADDED = "find_packed_sequence_indices", "prepare_padding_mask"


@contextmanager
def one_sequence_per_row() -> Iterator[None]:
    """Tells transformers that no row is padded or holds several sequences, which it would otherwise find by value.

    Fake tensors have no values, and it then builds an attention mask that a real step does not have. Where the real
    mask of ``fake_copy`` had padding, its fake one is built as well. Other threads are told what they would be told
    otherwise.
    """
    masking = sys.modules.get("transformers.masking_utils")
    if masking is None:
        yield
        return
    thread = threading.get_ident()
    with _lock:
        if not _inside:
            _originals.update((name, vars(masking)[name]) for name in (_PACKED, _PADDED) if name in vars(masking))
            for name in _originals:
                setattr(masking, name, functools.partial(_none_if_fake, name))
        _inside.append(thread)
    try:
        yield
    finally:
        with _lock:
            _inside.remove(thread)
            if not _inside:
                for name, original in _originals.items():
                    setattr(masking, name, original)
                _originals.clear()


def _none_if_fake(name: str, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    padded = name == _PADDED and getattr(getattr(tensor, "fake_mode", None), "padded", False)
    if threading.get_ident() in _inside and not padded:
        return None
    with _lock:
        original = _originals.get(name)
    if original is None:  # it was put back while this was called
        original = vars(sys.modules["transformers.masking_utils"])[name]
    return original(tensor, *args, **kwargs)


class Faked(TorchFunctionMode):
    """Runs on fake tensors what kernels take and PyTorch's shape functions refuse: grouped products in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _GROUPED and args[0].dtype is not torch.bfloat16 and args[0].ndim == 2 and args[1].ndim == 3:
            return _GroupedProduct.apply(*args[:2], (kwargs or {}).get("offs"))
        return func(*args, **(kwargs or {}))


# That of mixtures of experts. Before PyTorch 2.10 its kernels took bfloat16 alone.
_GROUPED = torch._grouped_mm if hasattr(functional, "grouped_mm") else None


class _GroupedProduct(torch.autograd.Function):
    """Each group of rows times a matrix of its own. (Sizes, not values.)"""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, matrices, ends)
        return rows.new_empty(rows.shape[0], matrices.shape[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, matrices, _ = ctx.saved_tensors
        of_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        return of_rows, torch.empty_like(matrices) if ctx.needs_input_grad[1] else None, None


class LikeCuda(Faked):
    """Makes fake CPU forwards save what CUDA's save, where the two differ.

    - Autocast: CUDA's keeps more functions in float32 than the CPU's.
    - Dropout: CUDA's fused op keeps a mask of bools; the CPU's keeps the mask in the dtype of the input.
    - ``scaled_dot_product_attention`` takes CUDA's kernels by CUDA's rules: flash attention for 16-bit inputs
      without a mask, the memory-efficient kernel for the rest if queries have as many heads as keys, else
      plain matrix products, which hold the attention matrices. cuDNN's kernel, which some cards prefer, holds
      what flash attention holds.

    Autograd on fake CUDA tensors aborts on a CPU build of PyTorch, or this would not be needed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_widened, (args, kwargs))
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return _of_several_heads(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


# "CUDA Ops that can autocast to float32": PyTorch's documentation of torch.amp
_IN_FLOAT32 = frozenset(
    """__pow__ __rdiv__ __rpow__ __rtruediv__ acos asin binary_cross_entropy_with_logits cosh
    cosine_embedding_loss cdist cosine_similarity cross_entropy cumprod cumsum dist erfinv exp expm1 group_norm
    hinge_embedding_loss kl_div l1_loss layer_norm log log10 log_softmax log1p log2 margin_ranking_loss mse_loss
    multilabel_margin_loss multi_margin_loss nll_loss norm normalize pdist poisson_nll_loss pow prod reciprocal
    rsqrt sinh smooth_l1_loss soft_margin_loss softmax softmin softplus sum renorm tan triplet_margin_loss""".split()
)


def _widened(value: Any) -> Any:
    sixteen = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if sixteen else value


def _narrowed(value: Any) -> Any:
    """As autocast hands it to attention."""
    single = isinstance(value, Tensor) and value.dtype is torch.float32
    return value.to(torch.get_autocast_dtype("cpu")) if single else value


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if inplace or not training or not 0 < p < 1:  # as PyTorch decides on CUDA
        return functional.dropout(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        query, key, value, attn_mask = (_narrowed(tensor) for tensor in (query, key, value, attn_mask))
    half = query.dtype in (torch.bfloat16, torch.float16)
    if half and attn_mask is None and query.shape[-1] == value.shape[-1] <= _FLASH_HEAD_DIM:
        return flash_attention(query, key, value, dropout_p, is_causal, scale)
    if query.shape[1] == key.shape[1]:
        bias = _as_bias(attn_mask, query, key)
        return _EFFICIENT(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


# What a function calls is not seen by a mode that sees the function: here it calls the two above.
_of_several_heads = types.FunctionType(
    functional.multi_head_attention_forward.__code__,
    vars(functional)
    | {"has_torch_function": lambda tensors: False, "dropout": _dropout, "scaled_dot_product_attention": _attention},
    argdefs=functional.multi_head_attention_forward.__defaults__,
)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float | None
) -> Tensor:
    """What CUDA's flash attention holds, whatever the rules say. ``ValueError`` where there is no such kernel."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = _narrowed(query), _narrowed(key), _narrowed(value)
    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[-1] > _FLASH_HEAD_DIM:
        raise ValueError(
            f"flash attention takes 16-bit inputs with at most {_FLASH_HEAD_DIM} numbers in a head; got "
            f"{query.dtype} with {query.shape[-1]}"
        )
    return _FLASH(query, key, value, dropout_p, is_causal, scale=scale)[0]


def _as_bias(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask as PyTorch hands it to the kernel: in the dtype of the query, expanded without a copy."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    return mask.expand(*query.shape[:-1], key.shape[-2])


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention
_EFFICIENT = torch.ops.aten._scaled_dot_product_efficient_attention
_FLASH_HEAD_DIM = 256
