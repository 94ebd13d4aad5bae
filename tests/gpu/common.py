"""What the tests share: the device, dtypes, and when two results are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from optiacts.backends.triton.elementary import INTERPRETED
from optiacts.curves import unimodal

DEVICE = torch.device("cpu") if INTERPRETED else torch.device("cuda", torch.cuda.current_device())
SIXTEEN_BIT = (torch.bfloat16, torch.float16)
DTYPES = (*SIXTEEN_BIT, torch.float32)
CURVES = list(unimodal().values())
Record = Callable[[str, object], None]  # pytest's record_property: what was measured stands in the report

named: dict[str, Any] = {"ids": lambda value: getattr(value, "name", None) or str(value).removeprefix("torch.")}
needs_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")


def relative(ours: Tensor, due: Tensor) -> float:
    return float((ours.double() - due.double()).norm() / due.double().norm())


def same_output(ours: Tensor, pytorchs: Tensor, eps: int) -> bool:
    """Equal on a GPU; within ``eps`` in the interpreter, which truncates where a GPU rounds and has numpy's exp."""
    rtol, atol = (eps * torch.finfo(ours.dtype).eps, 1e-6) if INTERPRETED else (0.0, 0.0)
    return torch.allclose(ours.float(), pytorchs.float(), rtol=rtol, atol=atol, equal_nan=True)
