"""Vector instructions of the decode on a CPU: of one round of the backward's loop, loads and stores among them.

    python -m benchmarks.native_instructions [LIBRARY]

A round handles 8 elements with AVX2 and 16 with AVX-512. Needs objdump.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

from optiacts.backends import native_library

_DECODERS = {
    "float32": "Registers",
    "float32, closed forms": "Pieces",
    "bfloat16": "Table<(anonymous namespace)::BFloat16>",
}


def counts(library: str) -> Iterator[tuple[str, str, int]]:
    """(dtype, instruction set, vector instructions)."""
    text = subprocess.run(
        ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for heading, code in re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)+)", text, flags=re.MULTILINE):
        for dtype, decoder in _DECODERS.items():
            if (
                f" (anonymous namespace)::backward<(anonymous namespace)::{decoder}, "
                in f" {heading.split('void', 1)[-1]}"
            ):
                level = "avx512" if "%zmm" in code else "avx2" if "%ymm" in code else "portable"
                if level != "portable":
                    yield dtype, level, _longest_round(code)


def _longest_round(code: str) -> int:
    """The vector instructions of the loop that has most of them and no other loop in it."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"^\s+([0-9a-f]+):\s+(.*)", code, flags=re.MULTILINE)]
    jumps = [(int(m[1], 16), at) for at, text in lines if (m := re.match(r"j\w+\s+([0-9a-f]+)", text))]
    loops = [(start, end) for start, end in jumps if start <= end]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    vectors = [at for at, text in lines if text.startswith("v")]
    return max((sum(start <= at <= end for at in vectors) for start, end in inner), default=0)


if __name__ == "__main__":
    for row in counts(sys.argv[1] if len(sys.argv) > 1 else native_library.library()._name):
        print("{:24}{:10}{:4}".format(*row))
