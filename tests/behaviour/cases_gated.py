"""Products with an activation's output, in all their writings, and what may happen between activation and product."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.case import add, case, sample
from tests.behaviour.parts import Mlp


class Gate(Mlp):
    def __init__(self, act=None):
        super().__init__(act=nn.SiLU() if act is None else act)
        self.both = nn.Linear(16, 64)


@case(nn.SiLU(), saves=2, tools=True)
@case(nn.GELU(), saves=2)
@case(nn.GELU("tanh"), saves=2)
@case(nn.Mish(), saves=2)
@case(nn.ReLU(), saves=1)
@case(F.silu, saves=2)
@case(F.gelu, saves=2)
@case(nn.Tanh())
@case(nn.Identity())
@case(nn.Sigmoid())
class Direct(Gate):
    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


@case(saves=2)
class UpFirst(Gate):
    def forward(self, x):
        return self.down(self.up(x) * self.act(self.gate(x)))


@case(saves=2)
class OneVariableAway(Gate):
    def forward(self, x):
        gate = self.act(self.gate(x))
        up = self.up(x)
        return self.down(gate * up)


@case(saves=2)
class VariableReused(Gate):
    def forward(self, x):
        y = self.up(x)
        x = self.gate(x)
        x = self.act(x)
        x = x * y
        return self.down(x)


@case(saves=2)
class TorchMul(Gate):
    def forward(self, x):
        return self.down(torch.mul(F.silu(self.gate(x)), self.up(x)))


@case(saves=2)
class TorchMulKeywords(Gate):
    def forward(self, x):
        return self.down(torch.mul(input=F.silu(self.gate(x)), other=self.up(x)))


@case(saves=2)
class MethodMul(Gate):
    def forward(self, x):
        return self.down(self.up(x).mul(F.silu(self.gate(x))))


@case(saves=1)
class MethodMulInPlace(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)).mul_(self.up(x)))


@case(saves=1)
class MethodMulInPlaceUp(Gate):
    def forward(self, x):
        return self.down(self.up(x).mul_(F.silu(self.gate(x))))


@case(saves=1)
class TimesEquals(Gate):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h *= self.up(x)
        return self.down(h)


@case()
class TimesEqualsWithAlias(Gate):
    def forward(self, x):
        h = F.silu(self.gate(x))
        alias = h
        view = h.view(-1, 32)
        h *= self.up(x)
        return self.down(alias) + self.down(view)


@case()
class UpTimesEqualsWithAlias(Gate):
    def forward(self, x):
        u = self.up(x)
        alias = u
        u *= F.silu(self.gate(x))
        return self.down(alias) + self.down(u)


@case(saves=1)
class Einsum(Gate):
    def forward(self, x):
        return self.down(torch.einsum("...i,...i->...i", F.silu(self.gate(x)), self.up(x)))


@case(saves=1)
class ThreeWayLeft(Gate):
    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x) * 0.5)


@case()
class ThreeWayRight(Gate):
    def forward(self, x):
        return self.down(0.5 * self.act(self.gate(x)) * self.up(x))


@case(saves=1)
class ThreeTensors(Gate):
    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x) * self.up(x))


@case(saves=2)
class TwoGates(Gate):
    def forward(self, x):
        return self.down(self.act(self.gate(x)) * F.gelu(self.up(x)))


@case(saves=2)
class UpPlusOne(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * (self.up(x) + 1))


@case(saves=1)
class ChunkedProjection(Gate):
    def forward(self, x):
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(up * self.act(gate))


@case(saves=1)
class ChunkIndexed(Gate):
    def forward(self, x):
        halves = torch.chunk(self.both(x), 2, dim=-1)
        return self.down(self.act(halves[0]) * halves[1])


@case(saves=1)
class Interleaved(Gate):
    def forward(self, x):
        h = self.both(x)
        return self.down(self.act(h[..., ::2]) * h[..., 1::2])


@case(saves=1)
class SplitAndRejoined(Gate):
    def forward(self, x):
        gate, up = self.both(x).split([32, 32], dim=-1)
        return self.down(torch.cat([self.act(gate) * up, gate * 0], dim=-1)[..., :32])


@case(saves=1)
class WeightSplit(Gate):
    def forward(self, x):
        gate, up = (F.linear(x, w) for w in self.both.weight.chunk(2))
        return self.down(self.act(gate) * up)


@case()
class GluFunction(Gate):
    def forward(self, x):
        return self.down(F.glu(self.both(x), dim=-1))


@case()
class GluModule(Gate):
    def __init__(self):
        super().__init__()
        self.glu = nn.GLU(dim=-1)

    def forward(self, x):
        return self.down(self.glu(self.both(x)))


@case()
class SigmoidGate(Gate):
    def forward(self, x):
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


# --- up is not like the gate ---


@case(saves=1)
class SmallerUp(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x)[..., :1])


@case(saves=1)
class BiggerUp(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * torch.stack([self.up(x)] * 2))


@case(saves=1)
class OneRowOfUp(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x)[0])


@case()
class PromotingUp(Gate):
    def forward(self, x):
        return self.down((F.silu(self.gate(x)) * self.up(x).double()).to(x.dtype))


@case(coarse=True)
class HalfGate(Gate):
    def forward(self, x):
        return self.down((F.silu(self.gate(x).half()) * self.up(x)).to(x.dtype))


@case()
class ScalarUp(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * 2.0 * torch.tensor(3.0))


@case()
class BooleanUp(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * (self.up(x) > 0))


@case()
class IntegerUp(Gate):
    def forward(self, x):
        return self.down(torch.arange(32) * F.silu(self.gate(x)))


@case(saves=1)
class ConstantUp(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x).detach())


@case()
class DetachedGate(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x).detach()) * self.up(x) + F.gelu(self.gate(x)))


@case(saves=1)
class ParameterUp(Gate):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(32))

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.scale)


@case()
class UpIsTheGate(Gate):
    def forward(self, x):
        g = self.gate(x)
        return self.down(F.silu(g) * g)


@case()
class ComplexUp(Gate):
    def forward(self, x):
        return self.down((F.silu(self.gate(x)) * torch.complex(self.up(x), self.up(x))).real)


@case()
class SparseUp(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x).relu().to_sparse().to_dense())


class Times:
    """What is multiplied need not be a tensor."""

    def __init__(self, value):
        self.value = value

    def __rmul__(self, other):
        return other + self.value

    __array_ufunc__ = None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return NotImplemented


@case()
class UpOverloads(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * Times(self.up(x)))


@case()
class UpRaises(Gate):
    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x)[..., :7])


@case(saves=2)
class AutocastInside(Gate):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            gate, up = self.gate(x.to(self.gate.weight.dtype)), self.up(x.to(self.gate.weight.dtype))
        return self.down(F.silu(gate) * up)


@case(saves=2)
class Cast(Gate):
    def forward(self, x):
        return self.down((F.silu(self.gate(x)) * self.up(x)).to(x.dtype))


# --- used elsewhere too ---


@case()
class GateUsedToo(Gate):
    def forward(self, x):
        g, u = self.gate(x), self.up(x)
        return self.down(F.silu(g) * u) + self.down(u) + self.down(g)


@case(saves=1)
class ActivationUsedToo(Gate):
    def forward(self, x):
        s = F.silu(self.gate(x))
        return self.down(s * self.up(x)) + self.down(s)


@case(saves=1)
class ActivationUsedTwice(Gate):
    def forward(self, x):
        s = F.silu(self.gate(x))
        return self.down(s * self.up(x)) + self.down(s * x.mean())


@case()
class ActivationReturned(Gate):
    def forward(self, x):
        s = F.silu(self.gate(x))
        return self.down(s * self.up(x)), s


@case()
class ActivationKept(Gate):
    def forward(self, x):
        self.kept = s = F.silu(self.gate(x))
        y = self.down(s * self.up(x)) + self.kept.mean()
        del self.kept
        return y


@case(saves=1)  # two names: the product is left, the activation is not
class ActivationRenamed(Gate):
    def forward(self, x):
        s = t = F.silu(self.gate(x))
        del s
        return self.down(t * self.up(x))


@case()
class VariableInALoop(Gate):
    def forward(self, x):
        s = self.gate(x)
        for _ in range(2):
            s = F.silu(s)
        return self.down(s * self.up(x))


@case()
class VariableInABranch(Gate):
    def forward(self, x):
        s = self.gate(x)
        if self.training:
            s = F.silu(s)
        return self.down(s * self.up(x))


@case()
class VariableInAClosure(Gate):
    def forward(self, x):
        s = F.silu(self.gate(x))

        def later():
            return s.mean()

        h = s * self.up(x)
        s = torch.zeros(())
        return self.down(h) + later()


@case()
class VariableAcrossTry(Gate):
    def forward(self, x):
        try:
            s = F.silu(self.gate(x))
            h = s * self.up(x)[:, :7]
        except RuntimeError:
            h = s
        return self.down(h)


# --- order of evaluation, and what changes in between ---


@case(invalid=True)
class UpChangesTheGate(Gate):
    def forward(self, x):
        h = self.gate(x)
        return self.down(self.act(h) * h.add_(1))


@case()
class UpChangesTheGateFirst(Gate):
    def forward(self, x):
        h = self.gate(x)
        return self.down(h.add_(1) * self.act(h))


@case()
class RandomOrder(Gate):
    def forward(self, x):
        return self.down(
            F.rrelu(self.gate(x), training=self.training) * F.dropout(self.up(x), training=self.training)
        )


@case()
class RandomGate(Gate):
    def __init__(self):
        super().__init__(act=nn.RReLU())

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * F.dropout(self.up(x), 0.5, self.training))


@case(invalid=True)
class GateChangedBetween(Gate):
    def forward(self, x):
        g = self.gate(x)
        h = F.silu(g)
        u = self.up(x)
        g = g.detach()
        g.add_(1)
        return self.down(h * u)


@case()
class GateChangedBetweenByView(Gate):
    def forward(self, x):
        g = self.gate(x) * 1
        v = g.view(-1)
        h = F.relu(g)
        v.mul_(2)
        return self.down(h * self.up(x))


@case()
class UpChangedBetween(Gate):
    def forward(self, x):
        u = self.up(x)
        h = F.silu(self.gate(x))
        u = u + 0
        u.mul_(2)
        return self.down(h * u)


@case(invalid=True)
class UpChangedAfterwards(Gate):
    """Not valid: PyTorch's backward raises."""

    def forward(self, x):
        u = self.up(x)
        h = F.silu(self.gate(x)) * u
        u.add_(1.0)
        return self.down(h)


@case()
class GateInPlaceSilu(Gate):
    def forward(self, x):
        return self.down(F.silu(self.gate(x), inplace=True) * self.up(x))


@case()
class GateInPlaceAndUsed(Gate):
    def forward(self, x):
        g = self.gate(x)
        h = F.silu(g, inplace=True) * self.up(x)
        return self.down(h) + self.down(g)


@case()
class GateInPlaceRelu(Gate):
    def forward(self, x):
        g = self.gate(x)
        h = F.relu(g, inplace=True) * self.up(x)
        return self.down(h) + self.down(g)


@case(saves=1)
class AttributesInBetween(Gate):
    """The activation is looked up before its argument runs, and the argument changes it."""

    def _swapped(self, x):
        self.act, self.other = getattr(self, "other", self.act), self.act
        return self.gate(x)

    def forward(self, x):
        return self.down(self.act(self._swapped(x)) * self.up(x))


# --- experts ---


@case(saves=1)
class ExpertsInALoop(Mlp):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([Direct(nn.SiLU()) for _ in range(3)])

    def forward(self, x):
        choice = torch.arange(x.shape[0]) % 3
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            (index,) = torch.where(choice == i)
            if index.numel() == 0:
                continue
            y.index_add_(0, index, expert(x[index]).to(y.dtype))
        return y


class _Weights(nn.Module):
    def __init__(self, act_fn):
        super().__init__()
        self.gate_up = nn.Parameter(sample(2, 16, 64) / 4)
        self.back = nn.Parameter(sample(2, 32, 16) / 4)
        self.act_fn = copy.deepcopy(act_fn)


@case(nn.SiLU(), saves=2)
class ExpertsBatched(_Weights):
    def forward(self, x):
        h = torch.bmm(x.expand(2, -1, -1), self.gate_up)
        gate, up = h.chunk(2, dim=-1)
        return torch.bmm(up * self.act_fn(gate), self.back).sum(0)


@case(F.silu, saves=1)
class ExpertsByWeights(_Weights):
    def _gated(self, h):
        gate, up = h.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def forward(self, x):
        out = torch.zeros_like(x)
        for i in range(2):
            out = out + self._gated(x @ self.gate_up[i]) @ self.back[i]
        return out


@case(nn.SiLU(), saves=1)
class ExpertsClamped(_Weights):
    """As gpt-oss does: clamped halves, and one added to up."""

    def forward(self, x):
        h = x @ self.gate_up[0]
        gate, up = h[..., ::2].clamp(max=7.0), h[..., 1::2].clamp(min=-7.0, max=7.0)
        return ((up + 1) * self.act_fn(gate)) @ self.back[0]


add("gated: of no rows", lambda: Direct(nn.SiLU()), inputs=lambda: (sample(0, 16),))
add("gated: of one number", lambda: Direct(nn.SiLU()), inputs=lambda: (sample(16),))
add(
    "gated: of infinities",
    lambda: Direct(nn.SiLU()),
    inputs=lambda: (sample().masked_fill(sample() > 1.2, float("inf")),),
)
add("gated: not contiguous", lambda: Direct(nn.SiLU()), inputs=lambda: (sample(16, 4).t(),), saves=2)
