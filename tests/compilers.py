"""Backends of torch.compile, for tests."""

from functorch.compile import min_cut_rematerialization_partition, nop
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

without_kernels = aot_autograd(
    fw_compiler=nop,
    bw_compiler=nop,
    partition_fn=min_cut_rematerialization_partition,
    decompositions=select_decomp_table(),
)
"""Inductor without its kernels, which take long: its decompositions, and its partitioner, which says what is held."""
