"""A rewritten forward does what the original does, or the original is left alone."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from tests.convertible import (
    Gated,
    agrees,
    sample,
)


class TestFaithfulness:
    """The forward is the user's own text: whatever else may happen in it happens."""

    def _model(self, forward: Callable[..., Tensor], **attributes: object) -> nn.Module:
        kind = type("Model", (Gated,), {"forward": forward})
        torch.manual_seed(0)
        model: nn.Module = kind()
        for name, value in attributes.items():
            setattr(model, name, value)
        return model

    def test_training_flag(self) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            h = self.act(self.gate(x)) * self.up(x)
            return self.down(functional.dropout(h, p=0.5, training=self.training))

        original = self._model(forward)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate + dropout"
        for mode in (True, False, True):
            agrees(model.train(mode), original.train(mode), sample())

    def test_product_in_place_that_is_changed_again(self) -> None:
        """Neither is converted: the product is overwritten, and overwrites the activation."""

        def forward(self: Gated, x: Tensor) -> Tensor:
            h = self.act(self.gate(x))
            h *= self.up(x)
            h += 1
            return self.down(h)

        original = self._model(forward)
        model = copy.deepcopy(original)
        assert not optiacts.convert(model).converted
        agrees(model, original, sample())

    def test_attribute_changed_later(self) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            h = self.act(self.gate(x)) * self.up(x)
            return self.down(h * self.scale if self.scaled else h)

        original = self._model(forward, scaled=False, scale=3.0)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate"
        for scaled, scale in ((False, 3.0), (True, 3.0), (True, 5.0)):
            for m in (model, original):
                m.scaled, m.scale = scaled, scale
            agrees(model, original, sample())

    def test_optional_arguments(self) -> None:
        def forward(self: Gated, x: Tensor, bias: Tensor | None = None, *rest: Tensor, factor: float = 1.0) -> Tensor:
            h = self.act(self.gate(x)) * self.up(x)
            h = h if bias is None else h + bias
            return self.down(h) * factor + sum(rest)

        original = self._model(forward)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate"
        x, bias = sample(), torch.ones(16)
        for args, kwargs in (((), {}), ((bias,), {}), ((bias, x), {}), ((), {"bias": bias}), ((), {"factor": 2.0})):
            assert torch.equal(model(x, *args, **kwargs), original(x, *args, **kwargs))

    def test_branch_on_a_value_is_followed_both_ways(self) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            h = self.act(self.gate(x)) * self.up(x)
            if x.shape[0] > 4:
                h = h + 1
            if h.dtype == torch.float64 and h.sum() > 0:
                h = h * 2
            return self.down(h)

        original = self._model(forward)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate"
        for x in (sample(4, 8), sample(5, 8)):
            agrees(model, original, x)
        x = sample(5, 8).detach().double()
        assert torch.equal(model.double()(x), original.double()(x))

    def test_replaced_activation(self) -> None:
        original = Gated()
        model = copy.deepcopy(original)
        optiacts.convert(model)
        model.act, original.act = nn.Tanh(), nn.Tanh()
        assert torch.equal(model(sample()), original(sample()))

    def test_hooks_on_the_activation_stillrun(self) -> None:
        model = Gated()
        optiacts.convert(model)
        seen: list[Tensor] = []
        handle = model.act.register_forward_hook(lambda module, args, output: seen.append(output))
        model(sample())
        assert len(seen) == 1
        handle.remove()
        model(sample())
        assert len(seen) == 1

    @pytest.mark.parametrize(
        "statement",
        [
            lambda self, x: self.options["scale"],
            lambda self, x: float(torch.rand(())),
            lambda self, x: random.random(),
            lambda self, x: 1 if isinstance(x, Tensor) else 2,
            lambda self, x: len(list(x)),
            lambda self, x: setattr(self, "calls", self.calls + 1) or self.calls,
        ],
    )
    def test_whatever_else_stands_there_happens(self, statement: Callable[..., float]) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            return self.down(self.act(self.gate(x)) * self.up(x) * statement(self, x))

        original = self._model(forward, options={"scale": 2}, calls=0)
        model = copy.deepcopy(original)
        before = random.getstate(), torch.random.get_rng_state(), model.calls
        report = optiacts.convert(model)
        assert [entry.what for entry in report.converted] == ["silu gate", "silu"]
        assert random.getstate() == before[0] and torch.equal(torch.random.get_rng_state(), before[1])
        assert model.calls == before[2]
        for scale in (2, 3):
            for m in (model, original):
                m.options = {"scale": scale}
            assert torch.equal(_seeded(model), _seeded(original))
        assert model.calls == original.calls

    def test_contexts(self) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                gate = self.gate(x)
            with torch.no_grad():
                up = self.up(x)
            return self.down(self.act(gate.float()) * up.float())

        original = self._model(forward)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate"
        agrees(model, original, sample())


def _seeded(model: nn.Module) -> Tensor:
    random.seed(1)
    torch.manual_seed(1)
    return model(sample())
