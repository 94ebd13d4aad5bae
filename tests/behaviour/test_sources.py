"""Where the code comes from: only what provably runs is rewritten, and people keep seeing their own text."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import sys
import types
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import optiacts
from tests import fresh
from tests.behaviour.case import sample
from tests.behaviour.cases_calls import Decorated, Inherited, Keyword
from tests.behaviour.cases_gated import Direct
from tests.behaviour.parts import Mlp

TEXT = """
from torch.nn import functional as F
from tests.behaviour.parts import Mlp


class Model(Mlp):
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))
"""
_numbers = itertools.count()


def _imported(path: Path) -> ModuleType:
    name = f"user_module_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _is_left(model: nn.Module, reason: str) -> None:
    torch.manual_seed(0)
    x = sample()
    expected = model(x)
    before = optiacts.saved_memory(model, x).bytes
    report = optiacts.convert(model)
    assert not [entry for entry in report.converted if entry.path == ""], report
    assert any(reason in entry.reason for entry in report.left), report
    assert torch.equal(model(x), expected)
    assert optiacts.saved_memory(model, x).bytes == before


def test_a_file_of_the_users_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "user.py"
    path.write_text(TEXT)
    model = _imported(path).Model()
    assert [entry.what for entry in optiacts.convert(model).converted if not entry.path] == ["gelu"]
    assert path.read_text() == TEXT
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["user.py"]


def test_a_class_without_a_file() -> None:
    names: dict[str, type[nn.Module]] = {"__name__": "nowhere"}  # type: ignore[dict-item]
    exec(TEXT, names)
    _is_left(names["Model"](), "source")


def test_a_function_put_together_by_hand() -> None:
    code = compile("def forward(self, x):\n    return self.down(F.gelu(self.gate(x)))", "<made>", "exec").co_consts[0]
    forward = types.FunctionType(code, {"F": nn.functional}, "forward")
    _is_left(type("Made", (Mlp,), {"forward": forward})(), "source")


@pytest.mark.parametrize(
    "edited",
    [
        TEXT.replace("F.gelu", "F.silu"),
        TEXT.replace("class Model", "# moved down\n\n\nclass Model"),
        TEXT.replace("self.down(", "1 + self.down("),
        "",
        "class Model(:\n",
    ],
    ids=["another function", "moved", "another expression", "emptied", "broken"],
)
def test_a_file_edited_after_its_import(tmp_path: Path, edited: str) -> None:
    path = tmp_path / "user.py"
    path.write_text(TEXT)
    module = _imported(path)
    path.write_text(edited)
    _is_left(module.Model(), "source")


def test_a_file_deleted_after_its_import(tmp_path: Path) -> None:
    path = tmp_path / "user.py"
    path.write_text(TEXT)
    module = _imported(path)
    path.unlink()
    _is_left(module.Model(), "source")


def test_a_file_edited_between_two_conversions(tmp_path: Path) -> None:
    path = tmp_path / "user.py"
    path.write_text(TEXT)
    first = _imported(path)
    optiacts.convert(first.Model())
    path.write_text(TEXT.replace("F.gelu", "F.silu"))
    second = _imported(path)
    model, original = second.Model(), second.Model()
    original.load_state_dict(model.state_dict())
    assert [entry.what for entry in optiacts.convert(model).converted if not entry.path] == ["silu"]
    assert torch.equal(model(sample()), original(sample()))


def test_future_annotations_and_other_files_flags(tmp_path: Path) -> None:
    """Compiled here, under this file's own future imports, the code must come out as in its file."""
    path = tmp_path / "user.py"
    text = TEXT.replace("def forward(self, x)", "def forward(self, x: NotDefined) -> 'Tensor'")
    path.write_text("from __future__ import annotations\n" + text)
    model = _imported(path).Model()
    assert [entry.what for entry in optiacts.convert(model).converted if not entry.path] == ["gelu"]
    assert model.forward.__annotations__ == {"x": "NotDefined", "return": "'Tensor'"}


@pytest.mark.parametrize("kind", [Keyword, Inherited, Decorated])
def test_people_see_their_own_text(kind: type[nn.Module]) -> None:
    model, original = kind(), kind()
    optiacts.convert(model)
    assert inspect.getsource(type(model).forward) == inspect.getsource(type(original).forward)
    assert inspect.getsource(inspect.unwrap(type(model).forward)) == inspect.getsource(inspect.unwrap(kind.forward))
    assert inspect.signature(model.forward) == inspect.signature(original.forward)
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        assert getattr(type(model).forward, name) == getattr(kind.forward, name)
    assert type(model).__name__ == kind.__name__ and type(model).__module__ == kind.__module__
    assert isinstance(model, kind)


def test_a_debugger_stops_in_their_lines() -> None:
    model = Keyword()
    optiacts.convert(model)
    lines = set()

    def trace(frame: types.FrameType, event: str, arg: object) -> object:
        if frame.f_code.co_filename.endswith("cases_calls.py"):
            lines.add((frame.f_code.co_name, frame.f_lineno))
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        model(sample())
    finally:
        sys.settrace(previous)
    text, first = inspect.getsourcelines(Keyword.forward)
    assert ("forward", first + len(text) - 1) in lines


def test_layers_share_class_and_code() -> None:
    models = [Direct(nn.SiLU()) for _ in range(2)]
    for model in models:
        optiacts.convert(model)
    assert type(models[0]) is type(models[1])
    assert type(models[0]).forward.__code__ is type(models[1]).forward.__code__


def test_first_use_on_meta() -> None:
    program = (
        "import torch, optiacts\n"
        "from torch import nn\n"
        "from tests.behaviour.cases_gated import Direct\n"
        "from tests.behaviour.cases_recognised import NewGELU\n"
        "with torch.device('meta'):\n"
        "    model = nn.Sequential(Direct(nn.SiLU()), NewGELU())\n"
        "    report = optiacts.convert(model)\n"
        "model.to_empty(device='cpu')\n"
        "[p.data.fill_(0.1) for p in model.parameters()]\n"
        "model(torch.ones(4, 16)).sum().backward()\n"
        "print(len(report.converted))\n"
    )
    assert int(fresh.run(program, check=True).stdout) >= 2
