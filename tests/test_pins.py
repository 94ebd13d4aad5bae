"""What holds a converted module to what it was: the same answers in C and in Python."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from optiacts import host
from optiacts.conversion import purity
from optiacts.conversion.purity import OWNER, Pin, holds

pytestmark = pytest.mark.skipif(host.lacking() is not None, reason=str(host.lacking()))


class Owner:
    number, text = 2, "text"

    def method(self) -> None:
        pass

    @property
    def broken(self) -> Any:
        raise KeyError("broken")


def closure(value: Any) -> Callable[[], Any]:
    return lambda: value


def _cell(*value: Any) -> types.CellType:
    return types.CellType(*value)


def _seen() -> torch.nn.Module:
    module = torch.nn.GELU()
    module.register_forward_hook(lambda *_: None)
    return module


OWN = Owner()
GELU, SEEN = torch.nn.GELU(), _seen()
GLOBALS = {"number": 2, "module": GELU, "seen": SEEN, "owner": OWN}
CASES: dict[str, tuple[Pin, Any, Any]] = {  # a pin, the callee, and what holds says
    "an attribute": (Pin(None, ("number",), 2), OWN, True),
    "another value": (Pin(None, ("number",), 3), OWN, False),
    "another type": (Pin(None, ("number",), 2.0), OWN, False),
    "a bool": (Pin(None, ("number",), True), OWN, False),
    "a text": (Pin(Owner, ("text",), "".join(("te", "xt"))), OWN, True),
    "gone": (Pin(None, ("gone",), 2), OWN, False),
    "the function of a method": (Pin(None, ("method", "__func__"), Owner.method), OWN, True),
    "a method, new each time": (Pin(None, ("method",), OWN.method), OWN, False),
    "a global": (Pin(GLOBALS, ("number",), 2), OWN, True),
    "an attribute of a global": (Pin(GLOBALS, ("owner", "text"), "text"), OWN, True),
    "no global": (Pin(GLOBALS, ("gone",), 2), OWN, False),
    "a cell": (Pin(_cell(5), (), 5), OWN, True),
    "in a closure": (Pin(0, (), 7), closure(7), True),
    "another in a closure": (Pin(0, (), 8), closure(7), False),
    "zero": (Pin(_cell(0), (), 0), OWN, True),
    "the zeros": (Pin(_cell(0.0), (), -0.0), OWN, False),
    "no two zeros are equal": (Pin(_cell(float("0.0")), (), float("-0.0") + 0.0), OWN, False),
    "a tuple": (Pin(_cell((1, 2)), (), tuple(range(1, 3))), OWN, True),
    "a dict": (Pin(_cell({"a": 1}), (), {"a": 1}), OWN, True),
    "another dict": (Pin(_cell({"a": 1}), (), {"a": 2}), OWN, False),
    "a list": (Pin(_cell([1]), (), [1]), OWN, False),
    "the owner": (Pin(GLOBALS, ("owner",), OWNER), OWN, True),
    "not the owner": (Pin(GLOBALS, ("owner",), OWNER), Owner(), False),
    "a module": (Pin(GLOBALS, ("module",), GELU), OWN, True),
    "a module with a hook": (Pin(GLOBALS, ("seen",), SEEN), OWN, False),
    "a broken property": (Pin(None, ("broken",), 2), OWN, KeyError),
    "an empty cell": (Pin(_cell(), (), 2), OWN, ValueError),
}


@pytest.mark.parametrize("in_c", [True, False], ids=["C", "Python"])
@pytest.mark.parametrize("case", CASES)
def test_pins(case: str, in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.setattr(purity, "_holds_in_c", None)
    pin, callee, due = CASES[case]
    if isinstance(due, type):
        with pytest.raises(due):
            holds((pin,), callee)
    else:
        assert holds((pin,), callee) is due
        assert holds((Pin(None, ("__class__",), type(callee)), pin), callee) is due
