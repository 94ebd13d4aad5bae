"""What conversion remembers: the same answers as without it, and new ones where what decides them has changed."""

import ast
import sys
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from optiacts.conversion.planning import Planner
from optiacts.conversion.source import source_of
from optiacts.conversion.syntax import names, walk, walked
from tests import fresh
from tests.behaviour import cases_calls, cases_chains, cases_dropout, cases_gated

SCALE = 1.0


def squashed(x: Tensor) -> Tensor:
    return x * torch.sigmoid(SCALE * x)


class Block(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.inner = nn.Linear(8, 16)
        self.outer = nn.Linear(16, 8)
        self.act: Any = nn.GELU() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.act(self.inner(self.norm(x))))

    def other(self, x: Tensor) -> Tensor:
        return functional.gelu(self.inner(x))


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 16)
        self.outer = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(squashed(self.inner(x)))


def _functions() -> list[FunctionType]:
    homes = (cases_calls, cases_chains, cases_dropout, cases_gated)
    kinds = [value for home in homes for value in vars(home).values() if isinstance(value, type)]
    kinds = [kind for kind in kinds if kind.__module__.startswith("tests.behaviour.")]
    return [value for kind in kinds for value in vars(kind).values() if isinstance(value, FunctionType)]


def _read() -> list[ast.AST]:
    found = []
    for function in _functions():
        try:
            found.append(source_of(function).node)
        except Exception:  # a dataclass's own methods have no source
            continue
    return found


def _shown(report: optiacts.ConversionReport) -> list[tuple[str, str]]:
    return [(entry.path, entry.what) for entry in report.entries]


def test_parts_of_a_tree_are_listed_as_python_lists_them() -> None:
    trees = _read()
    assert len(trees) > 100
    for tree in trees:
        assert walked(tree) == list(walk(tree)) == list(ast.walk(tree))
        assert list(names(tree)) == [node for node in ast.walk(tree) if isinstance(node, ast.Name)]


def test_a_conversion_leaves_the_trees_that_it_read_as_they_were() -> None:
    model = nn.Sequential(Block(), Block(nn.SiLU()), Written())
    functions = [Block.forward, Block.other, Written.forward, squashed]
    trees = [source_of(function).node for function in functions]
    before = [(ast.dump(tree, include_attributes=True), walk(tree), names(tree)) for tree in trees]
    assert optiacts.convert(model).converted
    optiacts.revert(model)
    for tree, (text, parts, variables) in zip(trees, before, strict=True):
        assert ast.dump(tree, include_attributes=True) == text
        assert list(parts) == list(ast.walk(tree))
        assert list(variables) == [node for node in ast.walk(tree) if isinstance(node, ast.Name)]


def test_a_method_replaced_between_conversions_is_read_anew() -> None:
    class Edited(Block):
        pass

    assert ("act", "gelu") in _shown(optiacts.convert(Edited()))

    def forward(self: Edited, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)) * functional.silu(self.inner(x)))

    type.__setattr__(Edited, "forward", forward)
    shown = [what for _, what in _shown(optiacts.convert(Edited()))]
    assert any("silu" in what for what in shown), shown


def test_a_global_replaced_between_conversions_is_read_anew(monkeypatch: Any) -> None:
    assert _shown(optiacts.convert(Written())) == [("", "swish(beta=1.0)")]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 1.37)  # which no other test has given a name of its own
    assert _shown(optiacts.convert(Written())) == [("", "swish(beta=1.37)")]


def test_an_activation_exchanged_between_conversions_is_read_anew() -> None:
    model = Block()
    assert ("act", "gelu") in _shown(optiacts.convert(model))
    optiacts.revert(model)
    model.act = nn.SiLU()
    assert ("act", "silu") in _shown(optiacts.convert(model))
    optiacts.revert(model)
    model.act.forward = functional.softsign
    assert not any(path == "act" and what for path, what in _shown(optiacts.convert(model)))


def test_modules_of_a_class_with_other_attributes_have_methods_of_their_own() -> None:
    one, other = Block(), Block()
    other.act = nn.Linear(16, 16)
    planner = Planner([*one.modules(), *other.modules()], gated=True)
    names_of = [[method.name for method in planner.methods(block)] for block in (one, other)]
    alone = [[method.name for method in Planner(list(b.modules()), gated=True).methods(b)] for b in (one, other)]
    assert names_of == alone
    assert planner.activation(one.act) is not None
    assert planner.activation(other.act) is None


def test_a_norm_is_recognised_without_symbolic_shapes() -> None:
    """PyTorch imports them, with all of sympy, for gradients that it is given."""
    code = (
        "import sys, torch, optiacts\n"
        "model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8))\n"
        "assert optiacts.convert(model).converted\n"
        "assert 'sympy' not in sys.modules\n"
    )
    fresh.run(code, check=True)
