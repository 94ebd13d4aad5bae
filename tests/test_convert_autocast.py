"""Norms and Linears under autocast with weights in float32: one cast for all, the same bits, gradients as good."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import optiacts
from optiacts import casts

WIDTH, ROWS = 64, 96


class Block(nn.Module):
    """A norm whose output goes to three Linears and, as in a post-norm model, to an addition."""

    def __init__(self, norm: type[nn.Module] = LlamaRMSNorm, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(ROWS, width)
        self.norm = norm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.embedding(x))
        return y + self.q(y) * self.k(y) + self.v(y.view(-1, y.shape[-1])).view(y.shape)


def rows() -> Tensor:
    return torch.arange(ROWS).view(4, -1)


def step(
    model: nn.Module, *args: Any, dtype: torch.dtype = torch.bfloat16, **kwargs: Any
) -> tuple[Any, list[Tensor]]:
    with torch.autocast("cpu", dtype):
        output = model(*args, **kwargs)
    first = output if isinstance(output, Tensor) else output[0]
    first.float().square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return output, gradients


def held(model: nn.Module, *args: Any) -> int:
    with torch.autocast("cpu", torch.bfloat16):
        return optiacts.saved_memory(model, *args).bytes


def error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Of all gradients together, each relative to its own size."""
    apart = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]
    return sum(e * e for e in apart) ** 0.5


@pytest.mark.parametrize("norm", [LlamaRMSNorm, nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("example", [False, True], ids=["read", "rehearsed"])
def test_bytes_bits_and_gradients(norm: type[nn.Module], example: bool) -> None:
    original, model = Block(norm), Block(norm)
    report = optiacts.convert(model, autocast=True, **({"example_inputs": rows()} if example else {}))
    assert [e.note for e in report.converted if e.path == "norm"] == ["keeps its output"]
    n, tensor, bias = ROWS * WIDTH, 2 * ROWS * WIDTH, norm is nn.LayerNorm
    # the copy, remainder bits, rstd, weight and bias as they are; the factors of the product
    theirs, ours = held(original, rows()), held(model, rows())
    products, casts_of_weights = 2 * tensor, 3 * 2 * WIDTH * WIDTH
    assert ours == tensor + n // 4 + 4 * ROWS + 4 * WIDTH * (1 + bias) + products + casts_of_weights + 8 * ROWS
    inside = {LlamaRMSNorm: 2 * 4 * n + 4 * ROWS, nn.LayerNorm: 4 * n + 8 * ROWS}.get(norm)
    assert inside is None or theirs == 3 * tensor + inside + products + casts_of_weights + 8 * ROWS
    if example:
        assert report.saved_bytes == (theirs, ours)
    (wanted, before), (found, after) = step(original, rows()), step(model, rows())
    assert found.dtype is torch.float32
    assert torch.equal(found, wanted)
    exact = step(Block(norm).double(), rows(), dtype=torch.bfloat16)[1]
    assert error(after, exact) < 1.02 * error(before, exact)
    # the Linears' gradients are the very same, and of a norm's weight the error is its output's roundings averaged
    for (name, _), a, b in zip(model.named_parameters(), after, before, strict=True):
        assert torch.equal(a, b) or name.startswith(("norm", "embedding"))
        assert (a - b).norm() < 1e-3 * b.norm()


SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def language_model(kind: str, dropout: float = 0.1) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    ids = torch.randint(0, 100, (2, 24))
    inputs = {"input_ids": ids, "labels": ids, "output_hidden_states": True}
    names = {"bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"), "t5": ("dropout_rate",)}
    names["gpt2"] = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    drops: Any = dict.fromkeys(names.get(kind, ()), dropout)
    if kind == "llama":
        config: Any = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False)
        return transformers.LlamaForCausalLM(config).train(), inputs
    if kind == "bert":  # its norms' outputs go to the residual branch too
        return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, **drops)).train(), inputs
    if kind == "gpt2":
        sizes = {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**sizes, **drops, use_cache=False)
        ).train(), inputs
    sizes = {"vocab_size": 100, "d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 4, "d_kv": 16}
    config = transformers.T5Config(**sizes, **drops, use_cache=False, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config).train(), inputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2", "t5"])
@pytest.mark.filterwarnings("ignore")
def test_whole_models(kind: str, dtype: torch.dtype) -> None:
    """Loss, logits and every hidden state are those of the model as it was, in value and in dtype."""
    (original, inputs), (model, _) = language_model(kind), language_model(kind)
    optiacts.convert(model, norms=True, autocast=True)
    results = []
    for net in (original, model):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype):
            output = net(**inputs)
        output.loss.backward()
        results.append(torch.utils._pytree.tree_leaves(output.to_tuple()))
    assert len(results[0]) == len(results[1]) > 4
    for a, b in zip(*results, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2", "t5"])
@pytest.mark.filterwarnings("ignore")
def test_gradients_of_whole_models(kind: str) -> None:
    """As near to float64's as those of the model as it was."""
    (original, inputs), (model, _), (exact, _) = (language_model(kind, dropout=0.0) for _ in range(3))
    optiacts.convert(model, autocast=True)
    exact.double()(**inputs).loss.backward()
    truth = {n: p.grad for n, p in exact.named_parameters() if p.grad is not None and p.grad.norm() > 1e-9}
    errors = []
    for net in (original, model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(**inputs).loss
        loss.backward()
        errors.append(error([dict(net.named_parameters())[n].grad for n in truth], list(truth.values())))
    assert errors[1] < 1.05 * errors[0]


def test_small_llama_holds_half() -> None:
    """Hidden-size tensors of 16 bits: 83 as it is, 70 with activations converted, 60 with norms, 45 by sharing."""
    sizes = {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=512, num_key_value_heads=4, use_cache=False)
    ids = torch.randint(0, 512, (2, 256))

    def tensors(**options: Any) -> float:
        model = transformers.LlamaForCausalLM(config).train()
        optiacts.convert(model, **options)
        return held(model, ids) / (2 * ids.numel() * 256)

    activations = tensors(norms=False, dropout=False)
    assert activations == pytest.approx(70.0, abs=0.05)
    assert tensors() == pytest.approx(60.0, abs=0.05)
    assert tensors(autocast=True) == pytest.approx(44.6, abs=0.05)


# --- where there is nothing to share ---


@pytest.mark.parametrize("case", ["off", "disabled inside", "no_grad", "float64", "bfloat16 weights"])
def test_elsewhere_nothing_differs(case: str) -> None:
    class Inside(Block):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=case not in ("off", "disabled inside")):
                return super().forward(x)

    original, model = Inside(), Inside()
    ordinary = Inside()
    optiacts.convert(model, autocast=True)
    optiacts.convert(ordinary)
    for net in (original, model, ordinary):
        net.to({"float64": torch.float64, "bfloat16 weights": torch.bfloat16}.get(case, torch.float32))
    with torch.autocast("cpu", torch.bfloat16, enabled=case != "off"), torch.set_grad_enabled(case != "no_grad"):
        assert torch.equal(model(rows()), original(rows()))
        if case in ("off", "disabled inside", "no_grad"):
            saved = [optiacts.saved_memory(net, rows()).bytes for net in (model, ordinary)]
            assert saved[0] == saved[1]


class Changed(nn.Module):
    """Changes the output between its takers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        a = self.first(y)
        getattr(y, "mul" + "_")(2)
        return a + self.second(y)


def test_a_change_in_place_makes_a_new_copy() -> None:
    """PyTorch's norm keeps its input, ours the copy: neither minds."""
    original, model = Changed(), Changed()
    optiacts.convert(model, autocast=True)
    x = torch.randn(8, WIDTH)
    (wanted, before), (found, after) = step(original, x), step(model, x)
    assert torch.equal(found, wanted)
    for a, b in zip(after, before, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()


def test_bad_channels_keep_the_input_and_still_share() -> None:
    original, model = Block(), Block()
    optiacts.convert(model, autocast=True)
    for net in (original, model):
        nn.init.zeros_(net.norm.weight[: WIDTH // 2])  # type: ignore[arg-type, index]
    (wanted, before), (found, after) = step(original, rows()), step(model, rows())
    assert torch.equal(found, wanted)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert held(original, rows()) - held(model, rows()) > 4 * ROWS * WIDTH  # two copies, and of the norm a half


def test_rescued_channels() -> None:
    original, model, exact = Block(), Block(), Block().double()
    optiacts.convert(model, autocast=True)
    for net in (original, model, exact):
        with torch.no_grad():
            net.norm.weight[5] = 0.0  # type: ignore[index]
    (wanted, before), (found, after), (_, truth) = (step(net, rows()) for net in (original, model, exact))
    assert torch.equal(found, wanted)
    assert error(after, truth) < 1.02 * error(before, truth)
    (ours,) = [g for (n, _), g in zip(model.named_parameters(), after, strict=True) if n == "norm.weight"]
    (theirs,) = [g for (n, _), g in zip(model.named_parameters(), before, strict=True) if n == "norm.weight"]
    torch.testing.assert_close(ours[5], theirs[5])


# --- the copies ---


def test_copies_go_with_their_tensors() -> None:
    model = Block()
    optiacts.convert(model, autocast=True)
    gc.collect()
    before = len(casts._copies)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(rows())
        assert len(casts._copies) == before  # y is gone already
        output.sum().backward()
    x = torch.randn(3, WIDTH, requires_grad=True) * 1
    with torch.autocast("cpu", torch.bfloat16):
        first, second = casts.shared(x), casts.shared(x)
        assert first is not second and first.data_ptr() == second.data_ptr()
        assert casts.shared(x[:2]).data_ptr() != first.data_ptr()
        assert casts.shared(x.view(WIDTH, 3)).data_ptr() == first.data_ptr()
        assert casts.shared(x.t()).data_ptr() != first.data_ptr()
        leaf = torch.randn(3, WIDTH, requires_grad=True)  # may live for ever
        assert casts.shared(leaf) is leaf
    with torch.autocast("cpu", torch.float16):
        assert casts.shared(x).dtype is torch.float16
    assert casts.shared(x) is x
    del x
    assert len(casts._copies) == before


def test_gradients_of_takers_are_summed_in_float32() -> None:
    x = torch.randn(3, WIDTH, requires_grad=True) * 1
    grads = [torch.randn(3, WIDTH).bfloat16() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        copies = [casts.shared(x) for _ in range(3)]
    (found,) = torch.autograd.grad(copies, x, grads)
    assert found.dtype is torch.float32
    assert torch.equal(found, grads[0].float() + grads[1].float() + grads[2].float())


def test_second_derivatives() -> None:
    """Of what the copy tells, through a norm that keeps it."""

    def penalty(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(3)
        x = torch.randn(ROWS, WIDTH).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        grad = torch.randn(ROWS, WIDTH).to(y.dtype)
        (dx,) = torch.autograd.grad(y, x, grad, create_graph=True)
        return list(torch.autograd.grad(dx.square().sum(), [x, model.norm.weight]))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm = nn.LayerNorm(WIDTH)
            with torch.no_grad():
                self.norm.weight.uniform_(0.5, 1.5)
                self.norm.bias.uniform_(-0.5, 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    truth = penalty(Net().double(), torch.float64)
    model = Net()
    optiacts.convert(model, autocast=True)
    found = penalty(model, torch.float32)
    for a, b in zip(found, truth, strict=True):
        assert (a.double() - b).norm() < 5e-3 * b.norm()


# --- what may happen to a converted model ---


def test_copies_of_the_model_and_revert() -> None:
    model = Block()
    optiacts.convert(model, autocast=True)
    wanted = held(model, rows())
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert held(copied, rows()) == wanted
        assert torch.equal(step(copied, rows())[0], step(model, rows())[0])
        assert not optiacts.convert(copied, autocast=True).entries
        optiacts.revert(copied)
        assert type(copied.q) is nn.Linear
        assert held(copied, rows()) == held(Block(), rows())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            self.embedding, self.block, self.again = nn.Embedding(ROWS, WIDTH), Changed(), again
            nn.init.normal_(self.embedding.weight, generator=torch.Generator().manual_seed(2))

        def forward(self, x: Tensor) -> Tensor:
            h = self.embedding(x)
            return checkpoint(self.block, h, use_reentrant=reentrant) if self.again else self.block(h)

    plain, model = Net(again=False), Net(again=True)
    optiacts.convert(plain, autocast=True)
    optiacts.convert(model, autocast=True)
    (wanted, before), (found, after) = step(plain, rows()), step(model, rows())
    assert torch.equal(found, wanted)
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a, b)


def test_exclude_and_adapters() -> None:
    model = Block()
    report = optiacts.convert(model, autocast=True, exclude=["k", "embedding"])
    assert {e.path for e in report.converted} == {"norm", "q", "v"}
    model.q = nn.Linear(WIDTH, WIDTH)  # takes its own cast
    assert torch.isfinite(step(model, rows())[0]).all()


def test_a_changed_linear_is_left() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    model = nn.Sequential(Own(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    model[2].forward = lambda x: x  # type: ignore[method-assign]
    assert not optiacts.convert(model, autocast=True).converted


def test_compiled_and_exported_as_before() -> None:
    """A compiler sees PyTorch's own operations, and shares what it likes."""
    model = Block()
    optiacts.convert(model, autocast=True)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    wanted = step(Block(), rows())
    found = step(torch.compile(model, fullgraph=True, backend=backend), rows())
    assert torch.equal(found[0], wanted[0])
    for a, b in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert not any("optiacts" in name.lower() for name in called), called
    with torch.autocast("cpu", torch.bfloat16):
        program = torch.export.export(model, (rows(),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("optiacts" in name for name in called), called
