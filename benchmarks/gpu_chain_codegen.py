"""What the compilers make of the kernels of chains, ahead of time, without a GPU; see gpu_codegen.py.

    python benchmarks/gpu_chain_codegen.py                   one JSON line per pass, layout, curve, dtype, target
    python benchmarks/gpu_chain_codegen.py --targets sm_90   only these

A pass has a loop over tiles with nearly everything in it: the instructions of the whole code, divided by the elements
that a thread has of a tile, are somewhat more than what an element takes. Compiled are tiles of 128 x 32 x 32 (batch
norms, planes or channels last), and rows of 768 (a layer norm).
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

from optiacts import curves
from optiacts.backends.triton import chain_launch
from optiacts.backends.triton.chain_kernels import chain_kernel, whole_rows_kernel

PASSES = {"sums": ("batch", True, False), "gradient": ("batch", False, True), "both": ("given", True, True)}
LAYOUTS = {"planes": False, "channels last": True}
CHANNELS, POSITIONS, COLUMNS = 128, 1024, 768
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def compile_pass(name: str, layout: str, curve: str, dtype: torch.dtype, target: str) -> tuple[Any, float]:
    """One pass over a tensor without rescued channels, and the elements that a thread has of a tile."""
    constants = chain_launch.curve_constants(curve, dtype, TARGETS[target].backend) | {"CENTERED": True}
    absent = {"mean_pointer", "slot_pointer", "rescued_pointer"}
    if not curves.get(curve).decoder.side_bits:
        absent.add("bits_pointer")
    if name == "rows":
        function, tiling = whole_rows_kernel, chain_launch.rows_tile(COLUMNS)
    else:
        function = chain_kernel
        statistics, sums, gradient = PASSES[name]
        constants |= {"STATISTICS": statistics, "SUMS": sums, "GRADIENT": gradient, "LAST": LAYOUTS[layout]}
        tiling = chain_launch.tile(CHANNELS, POSITIONS, dtype.itemsize, LAYOUTS[layout])
        absent |= set() if gradient and not sums else {"together_pointer"}
    threads = tiling["num_warps"] * TARGETS[target].warp_size
    elements = tiling["OUTER"] * tiling["UNITS"] * tiling["UNIT"] / threads
    constants |= tiling | dict.fromkeys(absent)
    names = function.arg_names
    options = {key: constants.pop(key) for key in list(constants) if key not in names}
    source = ASTSource(
        fn=function,
        signature={n: "constexpr" if n in constants else _type_of(n, dtype) for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in {*constants, "per_element"}},
    )
    return triton.compile(source, target=TARGETS[target], options=options), elements


def _type_of(name: str, dtype: torch.dtype) -> str:
    if not name.endswith("_pointer"):
        return "fp32" if name == "per_element" else "i32"
    if name == "bits_pointer":
        return "*u8"
    return POINTERS[dtype] if name.partition("_")[0] in ("y", "grad", "rescued") else "*fp32"


def all_figures(targets: list[str], dtypes: list[torch.dtype], told: list[str]) -> Iterator[dict[str, Any]]:
    passes = [*itertools.product(PASSES, LAYOUTS), ("rows", "channels last")]
    for target in targets:
        cases = [(*which, curve, dtype) for curve, dtype, which in itertools.product(told, dtypes, passes)]
        compiled, elements = zip(*(compile_pass(*case, target) for case in cases), strict=True)
        for case, each, measured in zip(cases, elements, inspect(list(compiled), target), strict=True):
            name, layout, curve, dtype = case
            per_element = round(measured.pop("instructions") / each, 1)
            what = {"pass": name, "layout": layout, "curve": curve, "dtype": str(dtype)[6:], "target": target}
            yield what | {"instructions_per_element": per_element} | measured | {"triton": triton.__version__}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    names = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    parser.add_argument("--dtypes", nargs="+", choices=names, default=list(names))
    told = [name for name, curve in curves.CURVES.items() if curve.triton_slope is not None]
    parser.add_argument("--curves", nargs="+", choices=told, default=told)
    chosen = parser.parse_args()
    for line in all_figures(chosen.targets, [names[name] for name in chosen.dtypes], chosen.curves):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
