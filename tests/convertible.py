"""Small models that the tests of conversion share, and what it means that two of them agree."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Gated(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act = nn.SiLU() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Chunked(Gated):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.cat([self.gate(x), self.up(x)], dim=-1).chunk(2, dim=-1)
        up = up * self.act(gate)
        return self.down(up)


class InPlaceProduct(Gated):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.gate(x))
        h *= self.up(x)
        return self.down(h)


class ByFunction(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.gate(x), approximate="tanh").mul(self.up(x)))


class ByHelper(Gated):
    def forward(self, x: Tensor) -> Tensor:
        for row in x:  # cannot be traced
            assert row.shape[-1] == 8
        return self.down(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        return functional.relu(self.gate(x)) * self.up(x)


class Plain(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class WrittenOut(Gated):
    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.down(up * torch.sigmoid(1.702 * up))


def sample(*shape: int) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(*(shape or (4, 8)), requires_grad=True)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(6)
    y = model(x)
    return y, list(
        torch.autograd.grad(y.square().sum(), [x, *model.parameters()], allow_unused=True, materialize_grads=True)
    )


def agrees(model: nn.Module, original: nn.Module, x: Tensor) -> None:
    """The same bits forward; gradients to float32 rounding (the contract at the curves' minimum is 1.2e-4)."""
    (y, ours), (expected, theirs) = run(model, x), run(original, x)
    assert torch.equal(y, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
