"""What the checks share: their dtypes, how they report, and when two results are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SIXTEEN_BIT = (torch.bfloat16, torch.float16)
DTYPES = (*SIXTEEN_BIT, torch.float32)
Report = dict[str, Any]


class BrokenPromiseError(Exception):
    """A promise is broken; the argument is what was measured."""


def relative(ours: Tensor, due: Tensor) -> float:
    return float((ours.double() - due.double()).norm() / due.double().norm())


def same_output(ours: Tensor, pytorchs: Tensor, eps: int) -> bool:
    """Equal on a GPU; within ``eps`` in the interpreter, which truncates where a GPU rounds and has numpy's exp."""
    from optiacts.backends.triton.elementary import VENDOR

    dry = VENDOR == "interpreted"
    rtol, atol = (eps * torch.finfo(ours.dtype).eps, 1e-6) if dry else (0.0, 0.0)
    return torch.allclose(ours.float(), pytorchs.float(), rtol=rtol, atol=atol, equal_nan=True)
