"""Known models at full size, on fake tensors: no weights, no memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts.reporting import MemoryReport, report
from optiacts.reporting.build import Setting, build

MODELS = {
    "bert-base": Setting(batch=16, seq=512, dtype="float32", loss=False),  # as in the paper
    "mistral-7b": Setting(),
}


def reports() -> Iterator[MemoryReport]:
    """What a GPU holds after a forward of each, before and after conversion."""
    for name, setting in MODELS.items():
        with FakeTensorMode(allow_non_fake_inputs=True):
            built = build(name, setting)
        how: dict[str, Any] = {"like_cuda": True, "peak": False, "name": name, "setting": built.setting}
        yield report(built.model, *built.args, **how, **built.kwargs)
