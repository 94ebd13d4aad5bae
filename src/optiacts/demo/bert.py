"""BERT-base at full size on fake tensors: the published setting, without the memory."""

from __future__ import annotations

from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts.reporting import MemoryReport, report
from optiacts.reporting.build import Setting, build


def published_setting() -> MemoryReport:
    """What a GPU holds after a training forward of `BertModel(BertConfig())`: float32, 16 x 512 tokens."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build("bert-base", Setting(batch=16, seq=512, dtype="float32", loss=False))
    return report(built.model, *built.args, like_cuda=True, name="bert-base", setting=built.setting, **built.kwargs)
