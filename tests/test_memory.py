"""Saved bytes, measured from the storages that autograd holds."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import optiacts
from optiacts import saved_memory

ROWS, WIDTH, HIDDEN = 24, 32, 104
HIDDEN_BITS = ROWS * HIDDEN // 8


def mlp(activation: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN, dtype=dtype), activation, nn.Linear(HIDDEN, WIDTH, dtype=dtype))


def hidden_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """What is held besides the model's input."""
    x = torch.randn(ROWS, WIDTH).to(dtype)
    memory = saved_memory(model, x)
    memory.output.sum().backward()  # what is held is enough for the backward
    return memory.bytes - x.nbytes


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (optiacts.GELU(), nn.GELU()),
        (optiacts.GELU("tanh"), nn.GELU("tanh")),
        (optiacts.SiLU(), nn.SiLU()),
        (optiacts.Mish(), nn.Mish()),
    ],
    ids=["gelu", "gelu_tanh", "silu", "mish"],
)
def test_an_mlp_holds_one_hidden_tensor_instead_of_two(
    ours: nn.Module, theirs: nn.Module, dtype: torch.dtype, compiled: bool
) -> None:
    torch.compiler.reset()
    hidden = ROWS * HIDDEN * dtype.itemsize
    model, reference = mlp(ours, dtype), mlp(theirs, dtype)
    if compiled:
        model = torch.compile(model, fullgraph=True)
    assert hidden_bytes(reference, dtype) == 2 * hidden
    assert hidden_bytes(model, dtype) == hidden + HIDDEN_BITS


def test_inplace_activation_saves_the_same() -> None:
    hidden = ROWS * HIDDEN * 4
    assert hidden_bytes(mlp(optiacts.GELU(inplace=True)), torch.float32) == hidden + HIDDEN_BITS


def test_fake_tensors_give_the_bytes_of_real_ones() -> None:
    with FakeTensorMode():
        fake = saved_memory(mlp(optiacts.GELU()), torch.randn(ROWS, WIDTH)).bytes
    assert fake == saved_memory(mlp(optiacts.GELU()), torch.randn(ROWS, WIDTH)).bytes


def test_a_storage_counts_once_and_parameters_do_not() -> None:
    weight = nn.Parameter(torch.randn(8, 8))
    x = torch.randn(4, 8, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return (x @ weight.t()) * x.view(4, 8)  # saves x twice, weight, and the product

    memory = saved_memory(function, x)
    assert memory.bytes == 2 * x.nbytes
    assert [s.shape for s in memory.storages] == [(4, 8), (4, 8)]


def test_buffers_of_a_module_do_not_count() -> None:
    norm = nn.BatchNorm1d(8).eval()
    x = torch.randn(4, 8, requires_grad=True)
    assert saved_memory(norm, x).bytes == x.nbytes


def test_what_the_graph_has_let_go_of_does_not_count() -> None:
    def function(x: Tensor) -> Tensor:
        x.exp().sin()  # its graph dies here
        return x * 2

    assert saved_memory(function, torch.randn(100, requires_grad=True)).bytes == 0


def test_bert_base_saves_exactly_12_gelu_inputs_less_their_bits() -> None:
    """The published setting: the default BertModel, float32, 16 x 512."""
    transformers = pytest.importorskip("transformers")
    with FakeTensorMode():
        model = transformers.BertModel(transformers.BertConfig()).train()
        tokens = torch.randint(0, 1000, (16, 512))
        before = saved_memory(lambda: model(tokens)).bytes
        for layer in model.encoder.layer:
            assert type(layer.intermediate.intermediate_act_fn).__name__ == "GELUActivation"
            layer.intermediate.intermediate_act_fn = optiacts.GELU()
        after = saved_memory(lambda: model(tokens)).bytes
    elements = 16 * 512 * 3072
    assert before - after == 12 * (elements * 4 - elements // 8)


def test_it_prints_as_a_small_table() -> None:
    """Sum, number, and what holds most: shapes of one kind in a row, the rest in one row."""
    layers = [
        torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)) for _ in range(2)
    ]
    held = optiacts.saved_memory(torch.nn.Sequential(*layers), torch.randn(512, 64))
    assert str(held).splitlines() == [
        "2.25 MiB held for backward in 6 storages",
        "    2.00 MiB  4 x float32 [512, 256]",
        "  256.00 KiB  2 x float32 [512, 64]",
    ]
    many = optiacts.saved_memory(
        lambda xs: [x.exp() for x in xs], [torch.ones(n, requires_grad=True) for n in range(1, 13)]
    )
    lines = repr(many).splitlines()
    assert lines[0] == "312 B held for backward in 12 storages" and len(lines) == 10
    assert lines[1].split() == ["48", "B", "1", "x", "float32", "[12]"]
    assert lines[-1].split() == [f"{4 * (1 + 2 + 3 + 4)}", "B", "4", "x", "others"]
    nothing = optiacts.saved_memory(torch.nn.Identity(), torch.ones(2))
    assert str(nothing) == "0 B held for backward in 0 storages"
