"""What the compilers make of the kernels of norms, ahead of time, without a GPU; see gpu_codegen.py.

    python benchmarks/gpu_norm_codegen.py                      one JSON line per kernel, norm, dtype, width and target
    python benchmarks/gpu_norm_codegen.py --targets sm_90      only these

The backward has a loop over rows: its instructions are those of the code, and are not given per element.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
import triton
from gpu_codegen import POINTERS, TARGETS, inspect
from triton.compiler import ASTSource

from optiacts.backends.triton import norm_launch
from optiacts.backends.triton.norm_kernels import backward_kernel, statistics_kernel
from optiacts.norms import Bounds, Norm

KERNELS = {"statistics": statistics_kernel, "backward": backward_kernel}
NORMS = {
    "layer norm": (Norm(True, 1e-5, remainder=True), True),
    "rms norm": (Norm(False, 1e-6, remainder=True), False),
    "written out": (Norm(False, 1e-6), False),
}
WIDTHS = (128, 768, 4096)
DTYPES = (torch.bfloat16, torch.float32)
FLOATS = ("eps", *Bounds._fields)


def compile_kernel(kernel: str, name: str, dtype: torch.dtype, columns: int, target: str) -> Any:
    """One kernel, of a norm in output mode."""
    norm, biased = NORMS[name]
    bits = norm.remainder and dtype.itemsize == 2
    if kernel == "statistics":
        constants = norm_launch.statistics_constants(norm, dtype, False, True, biased)
        absent = set() if biased else {"shift_pointer"}
    else:
        constants = norm_launch.backward_constants(norm.centered, dtype, True, False, True, biased, False, bits, True)
        absent = {"mean_pointer", "slot_pointer", "rescued_pointer"} | (set() if biased else {"shift_pointer"})
    if not bits:
        absent = absent | {"bits_pointer"}
    tiling = norm_launch.tile(columns)
    warps = tiling.pop("num_warps")
    function = KERNELS[kernel]
    constants |= tiling | dict.fromkeys(absent)
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={n: "constexpr" if n in constants else _type_of(n, dtype) for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in constants and n not in FLOATS
        },
    )
    return triton.compile(source, target=TARGETS[target], options={"num_warps": warps})


def _type_of(name: str, dtype: torch.dtype) -> str:
    if not name.endswith("_pointer"):
        return "fp32" if name in FLOATS else "i32"
    if name in ("bits_pointer", "poisoned_pointer"):
        return {"bits": "*u8", "poisoned": "*i1"}[name.partition("_")[0]]
    return POINTERS[dtype] if name.partition("_")[0] in ("x", "y", "grad", "kept") else "*fp32"


def all_figures(targets: list[str]) -> Iterator[dict[str, Any]]:
    cases = list(itertools.product(KERNELS, NORMS, DTYPES, WIDTHS))
    for target in targets:
        compiled = [compile_kernel(kernel, name, dtype, width, target) for kernel, name, dtype, width in cases]
        for (kernel, name, dtype, columns), measured in zip(cases, inspect(compiled, target), strict=True):
            what = {"kernel": kernel, "norm": name, "dtype": str(dtype)[6:], "columns": columns, "target": target}
            yield what | measured | {"triton": triton.__version__}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    for line in all_figures(parser.parse_args().targets):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
