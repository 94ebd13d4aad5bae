"""Dropouts in converted models: saved bytes, choosing, loading, training beside PyTorch."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optiacts
from optiacts import saved_memory

ROWS, WIDTH, HIDDEN = 24, 32, 104
TENSOR, BITS = ROWS * HIDDEN * 4, ROWS * HIDDEN // 8
INPUT, OUTPUT_BITS = ROWS * WIDTH * 4, ROWS * WIDTH // 8


class MLP(nn.Module):
    def __init__(self, act: nn.Module, p: float = 0.1, inplace: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.act, self.dropout = act, nn.Dropout(p, inplace)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.up(x))
        h = self.dropout(h)
        return F.dropout(self.down(h), 0.2, self.training)


class GatedMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        h = self.act(hidden) * hidden.flip(-1)
        h = self.dropout(h)
        return self.down(h)


def sample() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2))


def agrees(model: nn.Module, original: nn.Module) -> None:
    """The same bits and the same draws; gradients to float32 rounding."""
    results = []
    for one in (model, original):
        torch.manual_seed(7)
        y = one(sample())
        results.append((y, torch.get_rng_state(), torch.autograd.grad(y.square().sum(), [*one.parameters()])))
    (y, state, ours), (expected, drawn, theirs) = results
    assert torch.equal(y, expected) and torch.equal(state, drawn)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def held(model: nn.Module) -> int:
    memory = saved_memory(model, sample())
    memory.output.sum().backward()
    return memory.bytes - INPUT


@pytest.mark.parametrize(
    "act, bits, inplace",
    [(nn.GELU(), BITS, False), (nn.GELU(), BITS, True), (nn.SiLU(), BITS, True), (nn.ReLU(), 0, False)],
    ids=str,
)
def test_saved_bytes(act: nn.Module, bits: int, inplace: bool) -> None:
    original = MLP(act, inplace=inplace)
    model = copy.deepcopy(original)
    report = optiacts.convert(model)
    assert any("dropout" in entry.what for entry in report.converted) and not report.left
    assert held(model) == TENSOR + bits + OUTPUT_BITS
    noise = INPUT  # what PyTorch keeps of the last dropout on CPU
    assert held(original) == 3 * TENSOR + noise
    agrees(model, original)


def test_saved_bytes_of_a_gated_mlp() -> None:
    model = GatedMLP(nn.SiLU())
    optiacts.convert(model)
    edges = 2 * 4
    assert held(model) == 2 * TENSOR + 2 * BITS + edges


def test_saved_bytes_compiled() -> None:
    torch.compiler.reset()
    model = MLP(nn.GELU())
    before = held(torch.compile(model, fullgraph=True))
    optiacts.convert(model)
    torch.compiler.reset()
    assert held(torch.compile(model, fullgraph=True)) == TENSOR + BITS + OUTPUT_BITS < before


def test_choosing() -> None:
    def converted(**selection: object) -> set[str]:
        report = optiacts.convert(MLP(nn.GELU()), **selection)  # type: ignore[arg-type]
        return {f"{entry.path}: {entry.what}" for entry in report.converted}

    assert converted() == {": gelu + dropout", ": dropout", "act: gelu", "dropout: dropout"}
    assert converted(dropout=False) == set()  # nobody keeps the output then
    assert converted(exclude=nn.Dropout) == {": dropout", "act: gelu"}
    assert converted(exclude="act") == {": dropout", "dropout: dropout"}
    assert converted(include="dropout") == {"dropout: dropout"}


def test_a_dry_run_converts_what_dropouts_take() -> None:
    model = MLP(nn.GELU())
    report = optiacts.convert(model, example_inputs=sample())
    assert {entry.what for entry in report.converted} == {"gelu + dropout", "dropout", "gelu"}
    assert report.saved_bytes is not None
    assert report.saved_bytes[1] == TENSOR + BITS + OUTPUT_BITS + INPUT


@pytest.mark.parametrize(
    "make",
    [lambda: MLP(nn.GELU()), lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8))],
)
def test_copies_pickles_and_revert(make) -> None:  # type: ignore[no-untyped-def]
    original = make()
    model = copy.deepcopy(original)
    optiacts.convert(model)
    loaded, copied = pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
    assert held(loaded) == held(copied) == held(model) < held(original)
    for other in (loaded, copied):
        agrees(other, original)
    optiacts.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert held(model) == held(original)


def test_p_and_mode_are_asked_when_it_runs() -> None:
    original = MLP(nn.GELU())
    model = copy.deepcopy(original)
    optiacts.convert(model)
    for p in (0.0, 0.7, 1.0, 0.2):
        model.dropout.p = original.dropout.p = p
        for mode in (True, False):
            agrees(model.train(mode), original.train(mode))


def test_training_goes_as_with_pytorch() -> None:
    """The same seeds, dropouts on: after 40 steps the losses agree to float32 rounding."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, HIDDEN, dropout=0.1, activation="gelu", batch_first=True)
    target = torch.randn(4, 6, WIDTH)
    losses = []
    for convert in (False, True):
        model = copy.deepcopy(layer)
        if convert:
            optiacts.convert(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        torch.manual_seed(1)
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.mse_loss(model(sample().view(4, 6, WIDTH)), target)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 1.0 and abs(losses[0] - losses[1]) < 2e-4 * losses[0], losses


def test_a_dry_run_and_reports_see_every_layer() -> None:
    """Layers of a kind are read once; what dropouts take is told of each."""
    for act, own in ((nn.GELU(), 2), (nn.ReLU(), 0)):
        model = nn.Sequential(MLP(copy.deepcopy(act)), MLP(copy.deepcopy(act)))
        report = optiacts.convert(model, example_inputs=sample())
        assert not report.left
        assert sum("+ dropout" in entry.what for entry in report.converted) == 2
        assert sum(entry.path.endswith("act") for entry in report.converted) == own


def test_a_watched_dropout_in_place_overwrites_nothing_that_is_needed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Hardswish(), nn.Dropout(0.3, inplace=True), nn.Linear(8, 8))
    plain, x = copy.deepcopy(model), torch.randn(4, 8)
    optiacts.convert(model)
    found = []
    for each in (model, plain):
        each[2].register_forward_hook(lambda *_: None)
        torch.manual_seed(0)
        found.append(torch.autograd.grad(each(x).sum(), list(each.parameters())))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
