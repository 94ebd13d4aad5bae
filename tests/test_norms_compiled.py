"""Norms under torch.compile: what is held, gradients against float64, and weights that spoil what an output tells.

Most compile with the partitioner and decompositions of Inductor and none of its kernels, which would take long.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import min_cut_rematerialization_partition, nop
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.utils.checkpoint import checkpoint
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import optiacts
from optiacts.norms import Norm
from optiacts.ops import norm_channels

ROWS, WIDTH = 48, 64
KINDS: dict[str, tuple[Callable[[int], nn.Module], Norm]] = {
    "optiacts.LayerNorm": (optiacts.LayerNorm, Norm(True, 1e-5, remainder=True)),
    "optiacts.RMSNorm": (lambda n: optiacts.RMSNorm(n, eps=1e-5), Norm(False, 1e-5, remainder=True)),
    "nn.LayerNorm": (nn.LayerNorm, Norm(True, 1e-5, remainder=True)),
    "LlamaRMSNorm": (lambda n: LlamaRMSNorm(n, eps=1e-5), Norm(False, 1e-5)),
    "GemmaRMSNorm": (lambda n: GemmaRMSNorm(n, eps=1e-5), Norm(False, 1e-5, offset=1.0, remainder=True)),
    "T5LayerNorm": (lambda n: T5LayerNorm(n, eps=1e-5), Norm(False, 1e-5)),
}
# of gradients behind a norm and a Linear, relative in the Euclidean norm
MOST = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2}


@pytest.fixture(autouse=True, scope="module")
def _nothing_stays() -> Iterator[None]:
    """Norms with graphs are looked at in every optimizer's step, those of other tests too."""
    yield
    torch.compiler.reset()
    gc.collect()


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch.compiler.reset()
    optiacts.norm_weights_changed()
    yield
    torch.compiler.reset()


class Counter:
    """Compiles, and counts how often it does."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs.append(graph)
        made = aot_autograd(
            fw_compiler=nop,
            bw_compiler=nop,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )
        return made(graph, inputs)


def block(kind: str, dtype: torch.dtype = torch.float32, width: int = WIDTH) -> nn.Sequential:
    """A norm between two Linears, converted; the weights and biases of norms are not 1 and 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), KINDS[kind][0](width), nn.Linear(width, width))
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter.add_(0.1 * torch.randn(width))
    model.to(dtype)
    optiacts.convert(model)
    return model


def sample(dtype: torch.dtype = torch.float32, rows: int = ROWS, width: int = WIDTH) -> Tensor:
    return torch.randn(rows, width).to(dtype).requires_grad_()


def exact(model: nn.Sequential, kind: str, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The gradients of x and all parameters in float64, through the norm's definition."""
    first, norm, last = copy.deepcopy(model).double()
    x = x.detach().double().requires_grad_()
    bias = getattr(norm, "bias", None)
    y = last(KINDS[kind][1].reference(first(x), norm.weight, bias))
    own = [*first.parameters(), norm.weight, *([] if bias is None else [bias]), *last.parameters()]
    return list(torch.autograd.grad(y, [x, *own], grad.double()))


def gradients_are_exact(
    model: nn.Sequential, compiled: Any, kind: str, dtype: torch.dtype = torch.float32, between: Any = lambda: None
) -> bool:
    x = sample(dtype, width=model[0].in_features)
    grad = torch.randn(x.shape).to(dtype)
    truth = exact(model, kind, x, grad)
    y = compiled(x)
    between()
    found = torch.autograd.grad(y, [x, *model.parameters()], grad)
    pairs = zip(found, truth, strict=True)
    return all(bool((a.double() - b).norm() <= MOST[dtype] * b.norm() + 1e-30) for a, b in pairs)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("optiacts.LayerNorm", torch.float32),
        ("optiacts.RMSNorm", torch.bfloat16),
        ("nn.LayerNorm", torch.bfloat16),
        ("LlamaRMSNorm", torch.bfloat16),
        ("GemmaRMSNorm", torch.float32),
        ("T5LayerNorm", torch.bfloat16),
    ],
)
def test_saved_bytes_and_gradients(kind: str, dtype: torch.dtype) -> None:
    """x of the first Linear, y, one rstd per row, the weight and bias as they were; PyTorch holds one tensor more."""
    model, counter = block(kind, dtype), Counter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    assert gradients_are_exact(model, compiled, kind, dtype)
    due = 2 * ROWS * WIDTH * dtype.itemsize + 4 * ROWS
    due += 4 * WIDTH * len(list(model[1].parameters()))
    if KINDS[kind][1].remainder and dtype.itemsize == 2:
        due += ROWS * WIDTH // 4
    assert optiacts.saved_memory(compiled, sample(dtype)).bytes == due
    assert len(counter.graphs) == 1


def test_inductor_holds_a_tensor_less() -> None:
    """With Inductor's own kernels, in bfloat16: two bytes per element, but for one quarter in remainder bits."""
    x = sample(torch.bfloat16, rows=512)
    held = []
    for converted in (True, False):
        torch.compiler.reset()
        model = block("nn.LayerNorm", torch.bfloat16)
        if not converted:
            optiacts.revert(model)
        held.append(optiacts.saved_memory(torch.compile(model, fullgraph=True), x).bytes)
    saved = (held[1] - held[0]) / x.numel()
    assert 2 - 1 / 4 - 1 / 64 <= saved <= 2


def test_the_forward_is_what_compiled_pytorch_computes() -> None:
    model, x = block("LlamaRMSNorm"), sample()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


# Weights that spoil what the output tells


@pytest.fixture(params=["looks in every forward", "remembers"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "remembers":
        monkeypatch.setattr(norm_channels, "waits", lambda device: True)
        monkeypatch.setattr("optiacts.ops.norm_graphs.waits", lambda device: True)
    return str(request.param)


def kill(model: nn.Module, count: int) -> None:
    with torch.no_grad():
        model[1].weight[:count] = 0.0


@pytest.mark.parametrize("dead", [1, WIDTH])
def test_dead_weights_when_traced(dead: int) -> None:
    """It holds what PyTorch holds: x as well."""
    model = block("LlamaRMSNorm")
    kill(model, dead)
    compiled = torch.compile(model, fullgraph=True, backend=Counter())
    assert gradients_are_exact(model, compiled, "LlamaRMSNorm")
    assert optiacts.saved_memory(compiled, sample()).bytes >= 3 * ROWS * WIDTH * 4


def test_an_optimizer_step_that_kills_weights(device: str) -> None:
    """A fused one, which does not count its changes."""
    model, counter = block("nn.LayerNorm"), Counter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    step = torch.optim.SGD(model[1].parameters(), lr=1.0, fused=True)
    for _ in range(2):
        assert gradients_are_exact(model, compiled, "nn.LayerNorm")
        model[1].weight.grad, model[1].bias.grad = torch.zeros(WIDTH), torch.zeros(WIDTH)
        model[1].weight.grad[:40] = model[1].weight.detach()[:40]
        step.step()
        assert not model[1].weight[:40].any()
    assert gradients_are_exact(model, compiled, "nn.LayerNorm")
    assert len(counter.graphs) == 2


@pytest.mark.parametrize("kind", ["optiacts.RMSNorm", "LlamaRMSNorm"])
def test_a_state_dict_with_dead_weights(kind: str) -> None:
    model, counter = block(kind), Counter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    assert gradients_are_exact(model, compiled, kind)
    state = {k: torch.zeros_like(v) if k == "1.weight" else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    assert gradients_are_exact(model, compiled, kind)
    assert len(counter.graphs) == 2


def test_changes_that_nobody_sees(device: str) -> None:
    """An error that names the norm: on a CPU at once, elsewhere after NaN. Then it is exact again."""
    model, counter = block("GemmaRMSNorm"), Counter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    assert gradients_are_exact(model, compiled, "GemmaRMSNorm")
    model[1].weight.data[:1] = -1.0  # to which 1 is added
    if device == "looks in every forward":
        with pytest.raises(optiacts.UnseenChangeError, match=r"of 1 \(.*GemmaRMSNorm\)"):
            compiled(sample())
    else:
        x = sample()
        compiled(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isnan().all()
        assert model[1].weight.grad.isnan().all()
        with pytest.raises(optiacts.UnseenChangeError, match=r"of 1 \(.*GemmaRMSNorm\)"):
            torch.optim.SGD([nn.Parameter(torch.ones(1))]).step()
    assert gradients_are_exact(model, compiled, "GemmaRMSNorm")
    assert len(counter.graphs) == 2
    with torch.no_grad():
        model[1].weight.fill_(0.5)
    optiacts.norm_weights_changed()
    assert gradients_are_exact(model, compiled, "GemmaRMSNorm")  # with the first graph, its output kept
    assert optiacts.saved_memory(compiled, sample()).bytes < 2.1 * ROWS * WIDTH * 4
    assert len(counter.graphs) == 2


def test_saying_so_avoids_the_error(device: str) -> None:
    model = block("optiacts.LayerNorm")
    compiled = torch.compile(model, fullgraph=True, backend=Counter())
    assert gradients_are_exact(model, compiled, "optiacts.LayerNorm")
    model[1].weight.data.zero_()
    optiacts.norm_weights_changed()
    assert gradients_are_exact(model, compiled, "optiacts.LayerNorm")


def test_changes_between_forward_and_backward_do_not_matter(device: str) -> None:
    """The weight as it was in the forward is what backward goes by."""
    model = block("LlamaRMSNorm")
    compiled = torch.compile(model, fullgraph=True, backend=Counter())
    for value in (2.0, 0.0):
        before = model[1].weight.detach().clone()
        assert gradients_are_exact(
            model, compiled, "LlamaRMSNorm", between=lambda v=value: model[1].weight.data.mul_(v)
        )
        model[1].weight.data.copy_(before)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
def test_equal_layers_share_a_graph_and_are_looked_at_together() -> None:
    """Regionally compiled: the third has dead weights, the others share one graph that keeps their output."""
    layers, counter = [block("LlamaRMSNorm") for _ in range(4)], Counter()
    kill(layers[2], 5)
    for layer in layers:
        layer.compile(backend=counter, fullgraph=True)
    for layer in layers:
        assert gradients_are_exact(layer, layer, "LlamaRMSNorm")
    assert len(counter.graphs) == 2
    late = block("LlamaRMSNorm")  # nobody has looked at it, so it is traced itself
    kill(late, 5)
    late.compile(backend=counter, fullgraph=True)
    assert gradients_are_exact(late, late, "LlamaRMSNorm")
    assert len(counter.graphs) == 3


def test_many_changes_cost_few_compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many norms that are alike went bad one after another, all keep their input."""
    monkeypatch.setattr("optiacts.ops.norm_graphs._MOST_MARKS", 1)
    norms, counter = [optiacts.RMSNorm(24) for _ in range(4)], Counter()
    model, x = nn.Sequential(*norms), torch.randn(5, 24, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    step = torch.optim.SGD(model.parameters(), lr=0.0)
    for norm in norms:
        compiled(x).sum().backward()
        norm.weight.data[0] = 0.0
        step.step()
    compiled(x).sum().backward()
    assert len(counter.graphs) == 3


# What else compilers meet


def test_dynamic_shapes_compile_once() -> None:
    model, counter = block("nn.LayerNorm"), Counter()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    compiled(sample(rows=5))
    graphs = len(counter.graphs)
    for rows in (48, 31, 7):
        x = sample(rows=rows)
        y, due = compiled(x), model(x)
        torch.testing.assert_close(y, due)
        pairs = zip(*(torch.autograd.grad(t.square().sum(), [x, *model.parameters()]) for t in (y, due)), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert len(counter.graphs) == graphs


@pytest.mark.parametrize("name", KINDS)
def test_dynamic_shapes_of_two_norms_with_the_same_numbers(name: str) -> None:
    model = nn.Sequential(block(name), block(name))
    compiled = torch.compile(model, fullgraph=True, backend=Counter(), dynamic=True)
    for rows in (5, 48):
        x = sample(rows=rows)
        due, found = (
            torch.autograd.grad(run(x).square().sum(), list(model.parameters())) for run in (model, compiled)
        )
        for ours, eager in zip(found, due, strict=True):
            assert (ours - eager).norm() <= 3e-6 * eager.norm()


def test_checkpoint() -> None:
    """Nothing but the input is held, and the norm's op runs once more in backward."""
    model = block("LlamaRMSNorm")
    compiled = torch.compile(lambda x: checkpoint(model, x, use_reentrant=False), fullgraph=True, backend=Counter())
    assert gradients_are_exact(model, compiled, "LlamaRMSNorm")
    assert optiacts.saved_memory(compiled, sample()).bytes <= ROWS * WIDTH * 4 + 4 * WIDTH + 64


def test_autocast_is_pytorchs() -> None:
    model = block("nn.LayerNorm")
    plain, x = copy.deepcopy(model), sample()
    optiacts.revert(plain)
    found = []
    for each in (model, plain):
        torch.compiler.reset()
        with torch.autocast("cpu", torch.bfloat16):
            compiled = torch.compile(each, fullgraph=True, backend=Counter())
            found.append((compiled(x), optiacts.saved_memory(compiled, x).bytes))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_without_a_gradient_and_in_export_it_is_pytorchs() -> None:
    for kind in ("optiacts.LayerNorm", "LlamaRMSNorm"):
        torch.compiler.reset()
        model, counter = block(kind), Counter()
        with torch.no_grad():
            torch.compile(model, fullgraph=True, backend=counter)(sample().detach())
        (graph,) = counter.graphs
        assert "optiacts" not in str(graph.graph)
        assert "optiacts" not in str(torch.export.export(model, (sample(),)).graph)


def test_double_backward_is_pytorchs_error() -> None:
    model, x = block("LlamaRMSNorm"), sample()
    y = torch.compile(model, fullgraph=True, backend=Counter())(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.sum().backward()


def test_weights_that_a_graph_makes_itself() -> None:
    """There is nothing to look at: PyTorch's path."""
    master = torch.zeros(WIDTH, requires_grad=True)
    compiled = torch.compile(
        lambda x: optiacts.rms_norm(x, (WIDTH,), master * 2, 1e-5), fullgraph=True, backend=Counter()
    )
    x = sample()
    (found,) = torch.autograd.grad(compiled(x), master, torch.ones(ROWS, WIDTH))
    wide = x.detach().double()
    truth = 2 * (wide * Norm(False, 1e-5).statistics(wide)[1]).sum(0)
    assert (found - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("case", ["two dimensions", "no parameters", "frozen weight"])
def test_forms(case: str) -> None:
    shape = (4, WIDTH // 4) if case == "two dimensions" else (WIDTH,)
    module = optiacts.LayerNorm(shape, elementwise_affine=case != "no parameters", dtype=torch.float64)
    if case == "frozen weight":
        module.weight.requires_grad_(False)
    x = torch.randn(ROWS, *shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    trained = [x, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
    compiled = torch.compile(module, fullgraph=True, backend=Counter())
    found, due = (torch.autograd.grad(run(x), trained, grad) for run in (compiled, module))
    for a, b in zip(found, due, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
