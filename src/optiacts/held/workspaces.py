"""What kernels take besides their results: what is known of CUDA's, and whose is not known."""

from __future__ import annotations

from typing import Any

_CUDNN = "cuDNN chooses buffers by speed, up to gigabytes"
_SORTED = "it sorts the indices: some 40 bytes for each of them"
_ONEDNN = (
    "oneDNN copies input, weight and output into layouts that it chooses by the instruction set; in channels_last "
    "the weight alone"
)
_DECODED = (
    "each thread of the CPU kernel keeps what it decoded, up to 8 MiB, and up to 16 MiB stay for the next backward"
)
UNKNOWN_ON_CUDA = {
    "convolution": _CUDNN,
    "convolution_backward": _CUDNN,
    "_cudnn_rnn": "cuDNN keeps a reserve for backward, which it sizes itself; the steps of a CPU stand for it here",
    "embedding_dense_backward": _SORTED,
    "index_put": _SORTED,
    "_index_put_impl_": _SORTED,
    "sort": "its radix sort takes copies of keys and values",
    "topk": "its radix sort takes copies of keys and values",
    "_scaled_mm": "its workspace is the library's choice",
}
UNKNOWN_ON_CPU = {
    "convolution": _ONEDNN,
    "convolution_backward": _ONEDNN,
    "mkldnn_rnn_layer": "oneDNN keeps a workspace for backward, which it sizes itself",
    "chain_backward": _DECODED,
    "chain_gradients": _DECODED,
}
"""Ops by name whose workspace cannot be told from their arguments, and why."""

_FLASH_BLOCK = 128  # rows that the kernels round up to


def cuda_workspace(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """The bytes that the CUDA kernel of ``func`` takes besides its results while it runs, where it is known.

    The backward of flash attention adds up the gradient of the queries in float32, with a row's sum for each query
    (flash-attention 2, ``mha_bwd``); the memory-efficient one does so where it is not computed in float32 anyway.
    """
    name = func._schema.name.partition("::")[2]
    if name in ("_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_efficient_attention_backward"):
        query = args[1]
        if query.itemsize == 4:
            return 0
        batch, heads, rows, width = query.shape
        rows, width = -(-rows // _FLASH_BLOCK) * _FLASH_BLOCK, -(-width // 32) * 32
        expanded = 0
        key = args[2]
        if key.shape[1] != heads:  # each query head has gradients of keys and values of its own, then summed
            expanded = 2 * batch * heads * key.shape[2] * key.shape[3] * key.itemsize
        return int(4 * batch * heads * rows * (width + 1) + expanded)
    return 0


def unknown(ops: set[str], on_cuda: bool) -> dict[str, str]:
    """Those of ``ops`` whose workspace is not known, with the reason."""
    plain = {op.partition("::")[2] for op in ops}
    reasons = UNKNOWN_ON_CUDA if on_cuda else UNKNOWN_ON_CPU
    return {name: why for name, why in reasons.items() if name in plain}
