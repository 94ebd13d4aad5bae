"""An activation's output that is then changed in place: PyTorch needs it no more, we do."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.case import add, case
from tests.behaviour.parts import Called, Mlp

IN_PLACE = "in place"
Act = nn.SiLU


class Changed(Mlp):
    def __init__(self):
        super().__init__(act=nn.SiLU())
        self.scale = nn.Parameter(torch.full((32,), 0.5))
        self.same = nn.Identity()


# --- in the same function, under its own name ---


@case(left=IN_PLACE)
class PlusEquals(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h += 1.0
        return self.down(h)


@case(left=IN_PLACE, tools=True)
class ModulePlusEquals(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h += self.up(x)
        return self.down(h)


@case(left=IN_PLACE)
class MinusEquals(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h -= 0.1
        return self.down(h)


@case(left=IN_PLACE)
class TimesEqualsScalar(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h *= 0.5
        return self.down(h)


@case()
class TimesEqualsParameter(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h *= self.scale
        return self.down(h)


@case(left=IN_PLACE)
class DividedEquals(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h /= 2.0
        return self.down(h)


@case(left=IN_PLACE)
class PowerEquals(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h **= 2
        return self.down(h)


@case(left=IN_PLACE)
class RemainderEquals(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h %= 2
        return self.down(h)


@case(left=IN_PLACE)
class Method(Changed):
    def forward(self, x):
        return self.down(self.act(self.gate(x)).add_(1.0))


@case(left=IN_PLACE)
class MethodOnName(Changed):
    def forward(self, x):
        h = F.gelu(self.gate(x))
        h.div_(2)
        return self.down(h)


@case(left=IN_PLACE)
class Clamp(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h = h.clamp_(max=1.0)
        return self.down(h)


@case(left=IN_PLACE)
class MaskedFill(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h.masked_fill_(h < 0, 0.0)
        return self.down(h)


@case(left=IN_PLACE)
class IndexFill(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h.index_fill_(-1, torch.tensor([0]), 0.0)
        return self.down(h)


@case(left=IN_PLACE)
class Copied(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h.copy_(h * 2)
        return self.down(h)


@case(left=IN_PLACE)
class AddCMul(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h.addcmul_(self.scale, self.scale)
        return self.down(h)


@case(left=IN_PLACE)
class ItemSet(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h[..., 0] = 0
        return self.down(h)


@case(left=IN_PLACE)
class ItemPlusEquals(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h[0] += 1
        return self.down(h)


@case(left=IN_PLACE)
class MaskedSet(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h[h < 0] = 0.0
        return self.down(h)


@case(may_raise=True)
class Data(Changed):
    """``.data`` leaves no trace in autograd: the values that backward would decode are gone."""

    def forward(self, x):
        h = F.silu(self.gate(x))
        h.data.mul_(2.0)
        return self.down(h)


@case(may_raise=True)
class DetachedChange(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h.detach().mul_(2.0)
        return self.down(h)


@case(may_raise=True)
class Out(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        with torch.no_grad():
            torch.add(h, 1.0, out=h.data)
        return self.down(h)


@case(left=IN_PLACE)
class NoGradChange(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        with torch.no_grad():
            h.mul_(0.5)
        return self.down(h)


@case(left=IN_PLACE)
class AttributeOfTheOutput(Changed):
    def forward(self, x):
        self.h = F.silu(self.gate(x))
        self.h += 1
        y = self.down(self.h)
        del self.h
        return y


# --- by functions ---


@case(left=IN_PLACE)
class ReluFunction(Changed):
    def forward(self, x):
        return self.down(F.relu(F.silu(self.gate(x)), inplace=True))


@case(left=IN_PLACE)
class ReluPositional(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        return self.down(F.relu(h, True))


@case(left=IN_PLACE)
class RreluPositional(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        return self.down(F.rrelu(h, 0.1, 0.3, False, True))


@case(left=IN_PLACE)
class ReluUnderscore(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        torch.relu_(h)
        return self.down(h)


@case(left=IN_PLACE)
class LeakyUnderscore(Changed):
    def forward(self, x):
        return self.down(F.leaky_relu_(F.gelu(self.gate(x))))


@case(saves=1)  # hardtanh's input, of which PyTorch keeps a copy; the silu before it is left
class HardtanhInPlace(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        h = F.hardtanh(h, inplace=True)
        return self.down(h)


@case(saves=1.9)  # the activation and the mask
class DropoutInPlace(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        return self.down(F.dropout(h, 0.3, True, True))


@case()
class SiluTwiceInPlace(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        return self.down(F.silu(h, inplace=True))


@case(may_raise=True)
class Foreach(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        torch._foreach_mul_([h], 2.0)
        return self.down(h)


@case(may_raise=True)
class FilledByInit(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        nn.init.zeros_(h.data)
        return self.down(h)


@case(left=IN_PLACE)
class FlagIsAName(Changed):
    def forward(self, x, inplace=True):
        h = F.silu(self.gate(x))
        return self.down(F.relu(h, inplace=inplace))


@case(may_raise=True)
class HelperChanges(Changed):
    def _doubled(self, h):
        h *= 2
        return h

    def forward(self, x):
        return self.down(self._doubled(self.act(self.gate(x))))


def _shifted(h):
    h.add_(1)


@case(may_raise=True)
class FunctionChanges(Changed):
    def forward(self, x):
        h = F.gelu(self.gate(x))
        _shifted(h)
        return self.down(h)


# --- through views and aliases ---


@case(left=IN_PLACE)
class View(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h.view(-1).mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class NamedView(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x))
        v = h.view(-1, 32)
        v.zero_()
        return self.down(h)


@case(left=IN_PLACE)
class Row(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h[0].mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class Columns(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        first = h[..., :8]
        first += 1
        return self.down(h)


@case(left=IN_PLACE)
class Select(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h.select(0, 0).zero_()
        return self.down(h)


@case(left=IN_PLACE)
class Transposed(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h.t().mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class Flattened(Changed):
    def forward(self, x):
        h = self.act(self.gate(x)).flatten(0)
        h.mul_(2)
        return self.down(h.view(-1, 32))


@case(left=IN_PLACE)
class Contiguous(Changed):
    def forward(self, x):
        h = self.act(self.gate(x)).contiguous()
        h.mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class To(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h = h.to(h.dtype)
        h.mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class Reshaped(Changed):
    def forward(self, x):
        h = self.act(self.gate(x)).reshape(-1, 32)
        h.mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class ExpandAs(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        h = h.expand_as(h)
        h.mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class Squeezed(Changed):
    def forward(self, x):
        h = self.act(self.gate(x)).squeeze(1)
        h *= 2
        return self.down(h)


@case(left=IN_PLACE)
class AtLeast(Changed):
    def forward(self, x):
        h = torch.atleast_2d(self.act(self.gate(x)))
        h *= 2
        return self.down(h)


@case(left=IN_PLACE)
class Broadcast(Changed):
    def forward(self, x):
        h, _ = torch.broadcast_tensors(self.act(self.gate(x)), self.up(x))
        h *= 2
        return self.down(h)


@case(left=IN_PLACE)
class UnaryPlus(Changed):
    def forward(self, x):
        h = +self.act(self.gate(x))
        h *= 2
        return self.down(h)


@case(left=IN_PLACE)
class DropoutOfNothing(Changed):
    def forward(self, x):
        h = F.dropout(self.act(self.gate(x)), 0.0)
        h.mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class ThroughIdentity(Changed):
    def forward(self, x):
        h = self.same(self.act(self.gate(x)))
        h.mul_(2)
        return self.down(h)


@case(left=IN_PLACE)
class Alias(Changed):
    def forward(self, x):
        h = F.gelu(self.gate(x))
        o = h
        o += 1
        return self.down(h)


@case(left=IN_PLACE)
class AliasOfAlias(Changed):
    def forward(self, x):
        a = b = F.gelu(self.gate(x))
        c, d = b, x
        c += 1
        return self.down(a) + d


@case(may_raise=True)
class InAList(Changed):
    def forward(self, x):
        seen = [F.gelu(self.gate(x))]
        seen[0] += 1
        for h in seen:
            h *= 2
        return self.down(seen[-1])


@case(left=IN_PLACE)
class InADictByName(Changed):
    def forward(self, x):
        d = dict(h=F.gelu(self.gate(x)))  # noqa: C408
        d["h"] *= 2
        return self.down(d["h"])


@case(may_raise=True)
class InADict(Changed):
    def forward(self, x):
        d = {"h": F.gelu(self.gate(x))}
        d["h"].mul_(2)
        return self.down(d["h"])


@case()
class ChunksOfTheOutput(Changed):
    """Not valid: the outputs of chunk may not be changed in place."""

    def forward(self, x):
        a, b = F.silu(self.gate(x)).chunk(2, dim=-1)
        a.mul_(2)
        return self.down(torch.cat([a, b], dim=-1))


@case()
class ChunksBefore(Changed):
    """Not valid: silu on one output of chunk, in place."""

    def forward(self, x):
        a, b = self.gate(x).chunk(2, dim=-1)
        a = F.silu(a, inplace=True)
        return self.down(torch.cat([a, b], dim=-1))


@case(leaf=True)
class LeafSilu(Changed):
    """Not valid: a leaf is changed in place. It must not have been overwritten when that is found."""

    def forward(self, x):
        return self.gate(F.silu(x, inplace=True))


@case(leaf=True)
class LeafModule(Changed):
    def __init__(self):
        super().__init__()
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        return self.gate(self.act(x))


@case(leaf=True)
class LeafView(Changed):
    def forward(self, x):
        return self.gate(F.silu(x[:2], inplace=True))


@case()
class ClonedFirst(Changed):
    def forward(self, x):
        h = self.act(self.gate(x)).clone()
        h.mul_(2)
        return self.down(h)


@case(saves=1)
class CopyOfAHalf(Changed):
    def forward(self, x):
        h = self.act(self.gate(x))
        a, b = h.split(16, -1)
        a = a.clone()
        a.mul_(2)
        return self.down(h) + self.down(torch.cat([a, b], -1))


@case(saves=1)
class LaterName(Changed):
    """The name that is changed is another tensor by then."""

    def forward(self, x):
        h = self.act(self.gate(x))
        h = self.down(h)
        h += x
        return h


@case(saves=1)
class EarlierName(Changed):
    def forward(self, x):
        h = self.gate(x)
        h += 1
        h = self.act(h)
        return self.down(h)


# --- activations in place ---


@case()
class Discarded(Changed):
    def forward(self, x):
        h = self.gate(x)
        F.silu(h, inplace=True)
        y = self.up(self.down(h))
        z = F.silu(y, inplace=True)
        return self.down(z) + self.down(y) + self.down(h)


@case()
class DiscardedModule(Changed):
    def __init__(self):
        super().__init__()
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        h = self.gate(x)
        self.act(h)
        return self.down(h) + self.down(h)


@case(slack=1e-5)  # as that of all norms and activations in one
class InPlaceAfterBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.b1, self.b2 = nn.BatchNorm2d(8), nn.BatchNorm2d(4)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        x = x.reshape(4, 4, 2, 2)
        y = self.b2(self.c2(self.act(self.b1(self.c1(x)))))
        y += x
        return self.act(y)


# --- in a Sequential ---


def _sequence(*layers):
    return nn.Sequential(nn.Linear(16, 32), *layers, nn.Linear(32, 16))


for name, layers in {
    "ReLU": lambda: [nn.ReLU(inplace=True)],
    "Dropout": lambda: [nn.Dropout(0.5, inplace=True)],
    "Identity, Dropout": lambda: [nn.Identity(), nn.Dropout(0.5, inplace=True)],
    "Flatten, ReLU": lambda: [nn.Flatten(), nn.ReLU(inplace=True)],
    "Dropout(0), ReLU": lambda: [nn.Dropout(0.0), nn.ReLU(inplace=True)],
    "Unflatten, Flatten, ReLU": lambda: [nn.Unflatten(1, (4, 8)), nn.Flatten(), nn.ReLU(inplace=True)],
    "nested": lambda: [nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(inplace=True)))],
    "SiLU": lambda: [nn.SiLU(inplace=True)],
}.items():
    for outer in (nn.GELU, lambda: nn.Sequential(nn.SiLU()), lambda: nn.SiLU(inplace=True)):
        act = type(outer()).__name__ + (" in place" if "inplace=True" in repr(outer()) else "")
        add(
            f"inplace: Sequential {act}, then {name}",
            lambda outer=outer, layers=layers: _sequence(outer(), *layers()),
            left="" if name == "SiLU" or "Dropout" in name.split(", ") else IN_PLACE,
            saves=0.9 if "Dropout" in name.split(", ") else 0,  # the dropout's mask at least
        )

add(
    "inplace: of two Sequentials",
    lambda: nn.Sequential(_sequence(nn.GELU())[:2], nn.ReLU(True), nn.Linear(32, 16)),
    left=IN_PLACE,
)
add("inplace: Sequential, far away", lambda: _sequence(nn.GELU(), nn.Linear(32, 32), nn.ReLU(True)), saves=1)


# --- in the parent ---


class Block(nn.Module):
    def __init__(self, inplace=True):
        super().__init__()
        self.c, self.act = nn.Linear(16, 16), nn.SiLU(inplace=inplace)

    def forward(self, x):
        return self.act(self.c(x))


class Wrapping(Block):
    def __init__(self):
        super().__init__()
        self.inner = Block(inplace=False)

    def forward(self, x):
        return self.inner(x)


class Returning(Block):
    def __init__(self, as_dict=False):
        super().__init__()
        self.as_dict = as_dict

    def forward(self, x):
        y = self.act(self.c(x))
        return {"y": y} if self.as_dict else (y, x)


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.wrapping = Block(), Block(False), Wrapping()
        self.blocks = nn.ModuleList([Block(), Block(False)])
        self.returning, self.by_name = Returning(), Returning(as_dict=True)


@case(may_raise=True)
class ParentPlusEquals(Parent):
    def forward(self, x):
        y = self.c1(x)
        y += x
        return self.c2(y)


@case(may_raise=True)
class ParentTimesEquals(Parent):
    def forward(self, x):
        y = self.c2(x)
        y *= 0.5
        return self.c2(y)


@case(may_raise=True)
class ParentAdds(Parent):
    """Not valid: the second block's Linear keeps what is changed."""

    def forward(self, x):
        y = self.c1(x)
        z = self.c2(y)
        y.add_(z)
        return y


@case(may_raise=True)
class ParentOut(Parent):
    def forward(self, x):
        y = self.c1(x)
        with torch.no_grad():
            torch.add(y, x, out=y)
        return self.c2(y)


@case(may_raise=True)
class ParentView(Parent):
    def forward(self, x):
        y = self.c1(x)
        y.view(-1)[:4].mul_(2)
        return self.c2(y)


@case(may_raise=True)
class ParentRelu(Parent):
    def forward(self, x):
        return self.c2(F.relu(self.c1(x), inplace=True))


@case(may_raise=True)
class GrandParent(Parent):
    def forward(self, x):
        y = self.wrapping(x)
        y += x
        return self.c2(y)


@case(may_raise=True)
class ContainerLoop(Parent):
    def forward(self, x):
        y = x
        for block in self.blocks:
            y = block(y)
            y += x
        return y


@case(may_raise=True)
class TupleReturned(Parent):
    def forward(self, x):
        y, z = self.returning(x)
        y += z
        return self.c2(y)


@case(may_raise=True)
class DictReturned(Parent):
    def forward(self, x):
        out = self.by_name(x)
        out["y"] += x
        return self.c2(out["y"])


@case(may_raise=True)
class SequentialOfBlocks(Parent):
    def __init__(self):
        super().__init__()
        self.path = nn.Sequential(Block(), Block(False))

    def forward(self, x):
        y = self.path(x)
        y += x
        return y


@case(may_raise=True)
class ResidualAroundHelper(Parent):
    def _body(self, x):
        return self.c2(self.c1(x))

    def forward(self, x):
        y = self._body(x)
        y += x
        return y


@case(may_raise=True)
class StoredByTheChild(Parent):
    def forward(self, x):
        seen = []
        handle = self.c2.register_forward_hook(lambda module, args, y: seen.append(y))
        z = self.c2(x)
        handle.remove()
        seen[0].mul_(2)
        return self.c1(z)


class GatedBlock(Mlp):
    def forward(self, x):
        return F.silu(self.gate(x)) * self.up(x)


@case(may_raise=True)
class ParentOfAProduct(nn.Module):
    """The product itself is changed: backward of ours needs it, PyTorch's does not."""

    def __init__(self):
        super().__init__()
        self.block, self.down = GatedBlock(), nn.Linear(32, 16)

    def forward(self, x):
        h = self.block(x)
        h += 1
        return self.down(h)


@case()
class ProductPlusOne(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x)) * self.up(x)
        h.add_(1.0)
        return self.down(h)


@case()
class ProductViewZeroed(Changed):
    def forward(self, x):
        h = F.silu(self.gate(x)) * self.up(x)
        v = h[..., :8]
        v.zero_()
        return self.down(h)


@case()
class ProductDropoutInPlace(Changed):
    def forward(self, x):
        h = F.dropout(F.silu(self.gate(x)) * self.up(x), 0.3, self.training, True)
        return self.down(h)


@case(may_raise=True)
class CallerOutside(nn.Module):
    """Whoever calls the activation's module alone."""

    def __init__(self):
        super().__init__()
        self.inner = Called(nn.GELU())

    def forward(self, x):
        h = self.inner.act(self.inner.gate(x))
        h *= 2
        return self.inner.down(h)
