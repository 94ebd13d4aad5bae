"""Under torch.compile: as many graphs as before, and the saving."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import optiacts
from tests.behaviour.case import HIDDEN, sample
from tests.behaviour.cases_calls import Decorated, FunctionElsewhere, Keyword
from tests.behaviour.cases_gated import Direct
from tests.behaviour.cases_recognised import ErfInline, NewGELU
from tests.behaviour.parts import Called

KINDS = {
    "module": lambda: Called(nn.GELU()),
    "function": Keyword,
    "function as attribute": lambda: Called(nn.functional.silu),
    "gate": lambda: Direct(nn.SiLU()),
    "elsewhere": FunctionElsewhere,
    "written out": lambda: Called(NewGELU()),
    "inline": ErfInline,
    "decorated": Decorated,
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
@pytest.mark.parametrize("name", KINDS)
def test_equal_layers_are_compiled_once(name: str) -> None:
    """Regionally compiled layers, each of its own object, share one compilation, as unconverted ones do."""

    def frames(converted: bool) -> int:
        torch._dynamo.reset()
        layers = [KINDS[name]() for _ in range(4)]
        counter = CompileCounterWithBackend("aot_eager")
        x = sample().requires_grad_()
        for layer in layers:
            if converted:
                optiacts.convert(layer)
            layer.compile(backend=counter, fullgraph=name != "decorated")
            x = layer(x)
        x.sum().backward()
        return counter.frame_count

    assert frames(converted=True) <= frames(converted=False)


@pytest.mark.parametrize("name", ["module", "function", "gate", "elsewhere", "written out"])
def test_the_saving_is_there_when_compiled(name: str) -> None:
    def saved(converted: bool) -> int:
        torch._dynamo.reset()
        model = KINDS[name]()
        if converted:
            optiacts.convert(model)
        return optiacts.saved_memory(torch.compile(model, backend="aot_eager", fullgraph=True), sample()).bytes

    assert saved(converted=False) - saved(converted=True) >= 0.9 * HIDDEN
