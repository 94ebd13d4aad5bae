"""Are the fused forwards PyTorch's? Compares the PTX of our kernels with what NVRTC makes of PyTorch's.

    pip install nvidia-cuda-nvrtc               (or nvidia-cuda-nvrtc-cu12==12.8.93, ...)
    python benchmarks/gpu_forward_ptx.py        one JSON line per curve, exit status 1 if any differs

No GPU is needed. Compared are the arithmetic instructions per element and the constants in them. That is strong
evidence, not proof; `make gpu-check` compares results.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import torch
from gpu_codegen import compile_kernel

from optiacts.curves import unimodal

ELEMENTS = 8  # per thread of our kernels in float32
INSTRUCTION = re.compile(
    r"^\s+(?:@!?%p\d+ )?((?:mul|add|sub|fma|ex2|rcp|div|cvt\.(?:sat|rn))[\w.]*f32[\w.]*)\s+([^;]*);", re.MULTILINE
)


def nvrtc_ptx(library: Path, formula: str) -> str:
    """What NVRTC makes of an element-wise kernel with ``formula``."""
    for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    nvrtc, program, size = ctypes.CDLL(str(library)), ctypes.c_void_p(), ctypes.c_size_t()
    body = f"float x = a[threadIdx.x]; b[threadIdx.x] = {formula};"
    source = f'extern "C" __global__ void f(const float* a, float* b) {{ {body} }}'
    options = (ctypes.c_char_p * 1)(b"--gpu-architecture=sm_90")
    made = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"f.cu", 0, None, None)
    if made or nvrtc.nvrtcCompileProgram(program, 1, options) or nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)):
        raise RuntimeError(f"NVRTC at {library} refuses: {source}")
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, text)
    return text.value.decode()


def arithmetic(ptx: str, elements: int) -> dict[str, float]:
    """How often each arithmetic instruction occurs per element.

    1 / a may be written as rcp.rn or div.rn. Whether 2^a is flushed to zero makes no difference: all of these
    functions add it to 1. (Triton before 3.9 writes -a as 0 - a, and so has more of ``sub``.)
    """
    found = (match[1] for match in INSTRUCTION.finditer(ptx))
    names = (name.replace("mul.rn", "mul").replace("rcp.rn", "div.rn").replace(".ftz", "") for name in found)
    return {name: count / elements for name, count in sorted(collections.Counter(names).items())}


def constants(ptx: str) -> set[str]:
    """The float constants, but for their sign: a negation may move into a constant."""
    patterns = {int(match, 16) for match in re.findall(r"0f([0-9A-Fa-f]{8})", ptx)}
    return {f"{pattern & 0x7FFFFFFF:08x}" for pattern in patterns}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="libnvrtc.so.12 or .13; else that of the installed package")
    library = parser.parse_args().library or _installed()
    all_same = True
    for name, curve in unimodal().items():
        if curve.cuda is None:
            continue
        theirs = nvrtc_ptx(library, curve.cuda)
        ours = compile_kernel("forward", name, torch.float32, "sm_90").asm["ptx"]
        counts, our_counts = arithmetic(theirs, 1), arithmetic(ours, ELEMENTS)
        missing = constants(theirs) - constants(ours)
        same = counts == our_counts and not missing
        all_same &= same
        line = {
            "curve": name,
            "same": same,
            "instructions": sum(counts.values()),
            "missing constants": sorted(missing),
        }
        print(json.dumps(line | ({} if counts == our_counts else {"theirs": counts, "ours": our_counts})))
    return int(not all_same)


def _installed() -> Path:
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if re.fullmatch(r"libnvrtc\.so\.\d+", file.name):
                return Path(str(file.locate()))
    raise SystemExit("no NVRTC: pip install nvidia-cuda-nvrtc, or give --library")


if __name__ == "__main__":
    sys.exit(main())
