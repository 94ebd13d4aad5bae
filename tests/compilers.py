"""Backends of torch.compile, for tests, and the code that Inductor writes."""

from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import min_cut_rematerialization_partition, nop
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import fresh_inductor_cache, run_and_get_code

without_kernels = aot_autograd(
    fw_compiler=nop,
    bw_compiler=nop,
    partition_fn=min_cut_rematerialization_partition,
    decompositions=select_decomp_table(),
)
"""Inductor without its kernels, which take long: its decompositions, and its partitioner, which says what is held."""


def code_of(function: Callable[..., Any], *inputs: Any) -> str:
    """The code that Inductor writes for ``function(*inputs)``."""
    torch.compiler.reset()
    with fresh_inductor_cache():
        _, code = run_and_get_code(torch.compile(function, fullgraph=True), *inputs)
    return "".join(code)
