"""What the compilers make of the GPU kernels: compiled ahead of time, on a machine without a GPU.

    python benchmarks/gpu_codegen.py                      one JSON line per kernel, curve, dtype and target
    python benchmarks/gpu_codegen.py --targets sm_90      only these
    python benchmarks/gpu_codegen.py --table FILE         FILE's lines as a markdown table
    python benchmarks/gpu_codegen.py --summary FILE       their ranges over the curves: the table of docs/gpu.md

Instructions are counted in the machine code (SASS, GCN assembly) of the whole kernel, address arithmetic and
padding of bits included, and divided by the elements a thread handles: the kernels have no loops. Branches of a
forward that only odd inputs take count in full.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from optiacts.backends.triton import gated_kernels, gated_launch, launch
from optiacts.backends.triton.kernels import backward_kernel, forward_kernel, scale_kept_kernel
from optiacts.curves import get, unimodal

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
KERNELS = (
    *("forward", "pack", "backward", "gated_forward", "gated_backward"),
    *("dropped_backward", "dropped_gated_backward", "scale_kept"),
)
CURVES_OF = {kernel: ["gelu", "silu"] for kernel in KERNELS if "gated" in kernel or "dropped" in kernel}
CLOSED_FORMS = (("backward", "softplus"), ("gated_forward", "relu"), ("gated_backward", "relu"))  # one of each kind
CURVES_OF |= {"pack": ["gelu"], "scale_kept": ["gelu"]}
# What kernels take besides, for a dropout; not there, it is None.
FACTORS = ("scale", "inverse")
# How bits are stored, by the size of the last dimension: (bits per word, rows end within a byte).
VARIANTS = {"words": (32, False), "bytes": (8, False), "padded": (8, True)}
Figures = dict[str, Any]


def compile_kernel(kernel: str, curve: str, dtype: torch.dtype, target: str, variant: str = "words") -> Any:
    """``kernel`` as the launcher asks for it, for aligned tensors whose sizes are multiples of 16."""
    known, vendor = get(curve), TARGETS[target].backend
    function, constants = {
        "forward": lambda: (forward_kernel, launch.forward_constants(known, dtype, True, vendor)),
        "pack": lambda: (forward_kernel, launch.forward_constants(known, dtype, False, vendor)),
        "backward": lambda: (backward_kernel, launch.backward_constants(known, dtype, vendor)),
        "gated_forward": lambda: (
            gated_kernels.gated_forward_kernel,
            gated_launch.gated_forward_constants(known, dtype, known.triton is not None, vendor),
        ),
        "scale_kept": lambda: (scale_kept_kernel, {}),
        "gated_backward": lambda: (
            gated_kernels.gated_backward_kernel,
            gated_launch.gated_backward_constants(known, dtype, vendor),
        ),
    }[kernel.removeprefix("dropped_")]()
    constants |= _tile(kernel, dtype, variant) | {"PADDED": VARIANTS[variant][1]}
    names = function.arg_names
    if not kernel.startswith(("dropped", "scale")):
        constants |= {name: None for name in FACTORS if name in names}
    options = {name: constants.pop(name) for name in list(constants) if name not in names}
    signature = {name: "constexpr" if name in constants else _type_of(name, dtype) for name in names}
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in {*constants, *FACTORS}},
    )
    return triton.compile(source, target=TARGETS[target], options=options)


def _tile(kernel: str, dtype: torch.dtype, variant: str) -> dict[str, Any]:
    tile = gated_launch.gated_tile if "gated" in kernel else launch.tile
    return tile(VARIANTS[variant][0], dtype.itemsize)


def _type_of(name: str, dtype: torch.dtype) -> str:
    if name in FACTORS:
        return "fp32"
    if not name.endswith("_pointer"):
        return "i32"
    return "*u8" if name == "bits_pointer" else POINTERS[dtype]


def figures(kernel: str, curve: str, dtype: torch.dtype, variant: str, target: str, measured: Figures) -> Figures:
    """The figures of one kernel, from what was found in its code."""
    tiling = _tile(kernel, dtype, variant)
    threads = tiling["num_warps"] * TARGETS[target].warp_size
    instructions = measured.pop("instructions")
    return {
        "kernel": kernel,
        "curve": curve,
        "dtype": str(dtype).removeprefix("torch."),
        "target": target,
        "variant": variant,
        "instructions_per_element": round(instructions / (tiling["UNIT"] * tiling["UNITS"] / threads), 1),
        **measured,
        "triton": triton.__version__,
    }


def inspect(compiled: list[Any], target: str) -> list[Figures]:
    """What stands in the code of each of these kernels of one target."""
    if TARGETS[target].backend == "hip":
        return [_inspect_hip(kernel) for kernel in compiled]
    cubins = [kernel.asm["cubin"] for kernel in compiled]
    return [_inspect_cuda(*found) for found in zip(cubins, _disassembled(cubins, target), strict=True)]


BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"


def _disassembled(cubins: list[bytes], target: str) -> list[list[str]]:
    """The operations of each kernel. One call for them all, since nvdisasm takes half a second to start."""
    codes = [_code(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        sass = _output(str(BINARIES / "nvdisasm"), "--binary", target.replace("sm_", "SM"), file.name)
    lines = re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.MULTILINE)
    ends = list(itertools.accumulate(map(len, codes)))
    operations: list[list[str]] = [[] for _ in codes]
    for address, operation in lines:
        if operation != "NOP":
            operations[bisect.bisect(ends, int(address, 16))].append(operation)
    return operations


def _code(cubin: bytes) -> bytes:
    """The one section of an ELF file that holds instructions."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count = struct.unpack_from("<HH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers + size * i) for i in range(count)]
    executable = 4
    (code,) = (cubin[start : start + length] for _, _, flags, _, start, length in sections if flags & executable)
    return code


def _inspect_cuda(cubin: bytes, operations: list[str]) -> Figures:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(str(BINARIES / "cuobjdump"), "-res-usage", file.name)
    return {
        "instructions": len(operations),
        "registers": int(_found(r"REG:(\d+)", usage)),
        "spills": sum(operation.startswith(("LDL", "STL")) for operation in operations),
        "stack_bytes": int(_found(r"STACK:(\d+)", usage)),
        "loads": _widths("LDG", operations),
        "stores": _widths("STG", operations),
    }


def _widths(operation: str, operations: list[str]) -> list[int]:
    """The bytes that each thread moves with each access to global memory."""
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
    accesses = [o.split(".") for o in operations if o.split(".")[0] == operation]
    return sorted(next((sizes[part] for part in parts if part in sizes), 4) for parts in accesses)


def _inspect_hip(compiled: Any) -> Figures:
    assembly = compiled.asm["amdgcn"]
    operations = re.findall(r"^\t([a-z]+_[a-z0-9_]+)\b", assembly, re.MULTILINE)
    words = {"ubyte": 1, "byte": 1, "ushort": 2, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}

    def widths(direction: str) -> list[int]:
        found = (re.fullmatch(rf"(?:global|buffer)_{direction}_([a-z]+\d?)(?:_d16)?(?:_hi)?", o) for o in operations)
        return sorted(words[match[1]] for match in found if match)

    return {
        "instructions": len(operations),
        "registers": int(_found(r"\.vgpr_count:\s+(\d+)", assembly)),
        "spills": int(_found(r"\.vgpr_spill_count:\s+(\d+)", assembly)),
        "stack_bytes": int(_found(r"\.private_segment_fixed_size:\s+(\d+)", assembly)),
        "loads": widths("load"),
        "stores": widths("store"),
    }


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in the compiler's output:\n{text[:500]}")
    return match[1]


def all_figures(targets: list[str], dtypes: list[torch.dtype]) -> Iterator[Figures]:
    """Every kernel, dtype and target for all curves or those of ``CURVES_OF``; the odd variants once."""
    for target in targets:
        cases = list(_cases(dtypes))
        compiled = [compile_kernel(kernel, curve, dtype, target, variant) for kernel, curve, dtype, variant in cases]
        for case, measured in zip(cases, inspect(compiled, target), strict=True):
            yield figures(*case, target, measured)


def _cases(dtypes: list[torch.dtype]) -> Iterator[tuple[str, str, torch.dtype, str]]:
    for kernel in KERNELS:
        for curve in CURVES_OF.get(kernel, list(unimodal())):
            for dtype in dtypes:
                yield kernel, curve, dtype, "words"
        for variant in ("bytes", "padded"):
            yield kernel, "gelu", dtypes[0], variant
    for kernel, curve in CLOSED_FORMS:
        yield kernel, curve, dtypes[0], "words"


def table(lines: list[Figures]) -> str:
    """The figures as markdown."""
    fields = (
        "kernel",
        "curve",
        "dtype",
        "target",
        "instructions_per_element",
        "registers",
        "spills",
        "loads",
        "stores",
    )
    rows = [" | ".join(_text(line[field]) for field in fields) for line in lines]
    head = " | ".join(field.replace("_", " ") for field in fields)
    return "\n".join(f"| {row} |" for row in [head, "|".join("---" for _ in fields), *rows])


def summary(lines: list[Figures]) -> str:
    """Instructions per element / registers, least to most over the curves, as markdown; odd variants left out."""
    head = ["kernel", "dtype", *TARGETS]
    rows = []
    for kernel in KERNELS:
        for dtype in ("bfloat16", "float16", "float32"):
            key = (kernel, dtype, "words")
            chosen = [line for line in lines if (line["kernel"], line["dtype"], line["variant"]) == key]
            cells = ([line for line in chosen if line["target"] == target] for target in TARGETS)
            rows.append([kernel.replace("_", " "), dtype, *map(_ranges, cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _ranges(lines: list[Figures]) -> str:
    values = ([line[field] for line in lines] for field in ("instructions_per_element", "registers"))
    return " / ".join(" to ".join(map(str, sorted({min(found), max(found)}))) for found in values)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{value.count(width)} x {width} B" for width in sorted(set(value), reverse=True))
    return str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    names = {str(dtype).removeprefix("torch."): dtype for dtype in POINTERS}
    parser.add_argument("--dtypes", nargs="+", choices=names, default=list(names))
    parser.add_argument("--table", type=Path, metavar="FILE", help="print FILE's JSON lines as a markdown table")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the ranges over the curves instead")
    arguments = parser.parse_args()
    for show, file in ((table, arguments.table), (summary, arguments.summary)):
        if file:
            print(show([json.loads(line) for line in file.read_text().splitlines()]))
            return 0
    for line in all_figures(arguments.targets, [names[name] for name in arguments.dtypes]):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
