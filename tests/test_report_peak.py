"""The peak of a step: against what the allocator gives out in a real one, and by hand."""

from __future__ import annotations

import pytest
import torch
from report_calibration import CASES, Case, compared, language_model, with_adapters
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import optiacts
from optiacts.held.timeline import Recorder, envelope
from optiacts.held.workspaces import cuda_workspace
from optiacts.reporting.peak import GRADIENTS, HELD, INPUTS, PARAMETERS, STATE, TEMPORARIES

SMALL = {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4}
GPT2 = {"vocab_size": 1000, "n_embd": 128, "n_layer": 2, "n_head": 4}
_llama = language_model("Llama", 64, 4, **SMALL, num_key_value_heads=2)
_mixtral = language_model("Mixtral", 64, 4, **SMALL, num_key_value_heads=2, num_local_experts=4)
REAL = (
    Case("Llama", _llama),
    Case("Llama, autocast", language_model("Llama", 64, 4, **SMALL), torch.bfloat16),
    Case("Llama, optimizer", language_model("Llama", 4, 1, **SMALL)),
    Case("BERT, SGD", language_model("Bert", 64, 4, **SMALL), optimizer="sgd"),
    Case("GPT-2", language_model("GPT2", 64, 4, **GPT2)),
    Case("Llama, checkpointed", _llama, checkpoint=1),
    Case("Llama, LoRA with dropout", with_adapters(_llama, "lora", torch.bfloat16, dropout=0.1)),
    Case("Llama, QLoRA, checkpointed", with_adapters(_llama, "qlora"), checkpoint=2),
    Case("Mixtral", _mixtral),
    Case("Mixtral, autocast", _mixtral, torch.bfloat16),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REAL, ids=[case.name for case in REAL])
def test_the_predicted_peak_is_that_of_a_real_step(case: Case) -> None:
    """As it is and converted, to 2 %."""
    phases = set()
    for name, phase, predicted, measured in compared(case):
        assert predicted == pytest.approx(measured, rel=0.02), name
        phases.add(phase)
    assert phases == ({"optimizer step"} if "optimizer" in case.name else {"backward"})


def test_the_table_of_the_docs_has_these_models_and_larger_ones() -> None:
    assert len(CASES) > len(REAL)


def test_the_peak_of_a_net_by_hand() -> None:
    """Two Linears and a ReLU in float32: the moment is the backward of the last, when its gradient is there."""
    rows, wide, narrow = 512, 64, 8
    model = nn.Sequential(nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, wide))
    x = torch.zeros(rows, narrow)
    peak = optiacts.report(model, x, optimizer="adamw").now.peak
    assert peak is not None and peak.phase == "backward"
    weights = narrow * wide + wide, wide * wide + wide
    inner = rows * wide * 4
    assert peak.parts[PARAMETERS] == 4 * sum(weights) and peak.parts[INPUTS] == rows * narrow * 4
    assert peak.parts[STATE] == 2 * 4 * sum(weights)
    assert peak.parts[HELD] == inner  # the ReLU's output, which the Linear keeps too
    assert peak.parts[GRADIENTS] == 4 * weights[1]
    assert peak.parts[TEMPORARIES] - 2 * inner <= 8  # gradients of both sides of the ReLU; the loss and its gradient
    assert sum(peak.parts.values()) == peak.bytes
    larger = optiacts.report(model, torch.zeros(4 * rows, narrow)).now.peak
    growing = optiacts.report(model, x, optimizer="adamw", gpu_memory=2**26, choices=True).now.peak
    assert larger is not None and growing is not None and growing.growth is not None
    growth = growing.growth
    assert growth.of(rows) == peak.bytes and growth.of(4 * rows) == larger.bytes
    assert growth.largest(larger.bytes) == 4 * rows and growth.largest(larger.bytes - 1) == 4 * rows - 1


def test_a_model_keeps_its_gradients() -> None:
    with FakeTensorMode():
        model = nn.Linear(3, 4)
        model(torch.ones(2, 3)).sum().backward()
        before = model.weight.grad
        optiacts.report(model, torch.ones(2, 3))
    assert model.weight.grad is before


def test_what_is_not_counted_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    made = optiacts.report(model, torch.zeros(1, 3, 8, 8))
    assert made.now.peak is not None and set(made.now.peak.unknown) == {"convolution", "convolution_backward"}
    assert "Not counted of convolution: oneDNN copies" in str(made)
    on_cuda = optiacts.report(model, torch.zeros(1, 3, 8, 8), like_cuda=True).now.peak
    assert on_cuda is not None and set(on_cuda.unknown.values()) == {
        "cuDNN chooses buffers by speed, up to gigabytes"
    }


def test_pieces_come_and_go_and_places_are_told_in_backward_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
    recorder = Recorder(model)
    recorder.tell(model.parameters(), "parameters")
    with recorder.watching():
        model(torch.ones(2, 4)).sum().backward()
    timeline = recorder.timeline
    levels = timeline.levels()
    gradients = 4 * (16 + 4)
    assert levels[timeline.given - 1] == gradients and levels[-1] == 2 * gradients  # parameters; and their gradients
    made = {piece.op: piece.where for piece in timeline.pieces}
    assert made["aten::sigmoid"] == made["aten::sigmoid_backward"] == "1 (Sigmoid)"
    assert made["aten::mm"] == "0 (Linear)"
    alive = timeline.alive(len(levels) - 1)
    assert sum(timeline.pieces[piece].nbytes for piece in alive) == levels[-1]


def test_the_envelope_is_the_largest_line_for_every_batch() -> None:
    lines = [(100, 1), (90, 2), (10, 8), (95, 1.5), (10, 7), (0, 3)]  # constant, slope
    batch, other = 3, 6
    levels = [int(2 * (c + s * batch)) for c, s in lines]
    others = [int(2 * (c + s * other)) for c, s in lines]
    hull = envelope(levels, others, batch, other)
    for n in range(0, 60):
        assert max(c + s * n for c, s in hull) == max(2 * (c + s * n) for c, s in lines)
    assert len(hull) < len(lines)


def test_known_workspaces_of_cuda() -> None:
    b, h, s, d = 2, 4, 100, 64
    with FakeTensorMode():
        q = torch.empty(b, h, s, d, dtype=torch.bfloat16, requires_grad=True)
        held = torch.ops.aten._scaled_dot_product_flash_attention(q, q, q, 0.0, True)[0]
        func = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
        assert cuda_workspace(func, (held, q, q), None) == 4 * b * h * 128 * (64 + 1)
        assert cuda_workspace(func, (held, q, q[:, :1]), None) == 4 * b * h * 128 * 65 + 2 * 2 * b * h * s * d
        assert cuda_workspace(torch.ops.aten.mm.default, (q, q), None) == 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_what_recurrent_kernels_keep_is_named(kind: type[nn.RNNBase]) -> None:
    model, x = kind(8, 8), torch.zeros(3, 2, 8)
    on_cuda = optiacts.report(model, x, like_cuda=True).now.peak
    assert on_cuda is not None and "_cudnn_rnn" in on_cuda.unknown
    if kind is nn.LSTM and torch.backends.mkldnn.is_available():
        there = optiacts.report(model, x).now.peak
        assert there is not None and "mkldnn_rnn_layer" in there.unknown
