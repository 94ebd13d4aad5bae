"""Forwards put together at random, from fragments that are harmless and fragments that are not."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.behaviour.case import Case
from tests.behaviour.compare import compare
from tests.behaviour.worlds import EVERYWHERE

# Every statement reads and leaves a hidden tensor h, may use x, and is valid wherever it stands.
STATEMENTS = [
    "h = F.gelu(h)",
    "h = F.silu(input=h)",
    "h = self.act(h)",
    "h = self.act(h) * self.up(x)",
    "h = self.up(x) * F.silu(h)",
    "h = swiglu(self.both(x)) + h",
    "h = h * torch.sigmoid(h)",
    "h = h * torch.sigmoid(1.3 * h)",
    "g = F.silu(h)\n{indent}h = g * self.up(x) + g",
    "g = self.act(h)\n{indent}u = self.up(x)\n{indent}h = torch.mul(u, g)",
    "h = self.gate(self.down(h))",
    "h += 1.0",
    "h *= 0.5",
    "v = h[..., :8]\n{indent}v += 1.0",
    "h = h.clone()\n{indent}h.view(-1).mul_(2)",
    "h = F.relu(h, inplace=True)",
    "h = F.dropout(h, 0.5, self.training)",
    "r = h\n{indent}h = h + 1\n{indent}h += r",
    "note('here', self.training)",
    "h = self.same(h)",
]
BLOCKS = [
    "with torch.autocast('cpu', enabled=False):",
    "with torch.no_grad():",
    "for _ in range(2):",
    "if self.training:",
    "try:",
]
HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.effects import note
from tests.behaviour.elsewhere import swiglu
from tests.behaviour.parts import Mlp


class Generated(Mlp):
    def __init__(self):
        super().__init__(act=nn.SiLU())
        self.both, self.same = nn.Linear(16, 64), nn.Identity()

    def forward(self, x):
        h = self.gate(x)
"""
CHOSEN = [  # the contract's slack: what hypothesis finds may lie near a minimum
    replace(w, slack=1.2e-4, in_a_row=8)
    for w in EVERYWHERE
    if w.name in ("train", "eval", "no_grad", "autocast", "forward hooks", "input too wide")
]
_numbers = itertools.count()

statement = st.sampled_from(STATEMENTS)
block = st.tuples(st.sampled_from(BLOCKS), st.lists(statement, min_size=1, max_size=3))
program = st.lists(st.one_of(statement, block), min_size=1, max_size=6)


def _lines(parts: list[str | tuple[str, list[str]]]) -> str:
    text = []
    for part in parts:
        if isinstance(part, str):
            text.append(" " * 8 + part.format(indent=" " * 8))
            continue
        head, body = part
        text.append(" " * 8 + head)
        text += [" " * 12 + line.format(indent=" " * 12) for line in body]
        if head == "try:":
            text.append(" " * 8 + "finally:\n" + " " * 12 + "note('left')")
    return "\n".join(text)


def _module(folder: Path, parts: list[str | tuple[str, list[str]]]) -> type:
    name = f"cases_generated_{next(_numbers)}"
    path = folder / f"{name}.py"
    path.write_text(f"{HEAD}{_lines(parts)}\n        return self.down(h)\n")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.Generated


@settings(
    max_examples=100,
    phases=[Phase.generate, Phase.shrink],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=program)
def test_generated_forwards(tmp_path: Path, parts: list[str | tuple[str, list[str]]]) -> None:
    kind = _module(tmp_path, parts)
    case = Case("generated", kind, may_raise=True)
    told = [f"{world}: {line}" for world in CHOSEN for line in compare(case, world)]
    assert not told, "\n".join([*told, _lines(parts)])
