"""The ways in which an activation gets called: where its code stands, and through what."""

import functools
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.nn import functional as F
from torch.nn.functional import gelu as imported
from transformers.activations import ACT2FN, gelu

from tests.behaviour import elsewhere
from tests.behaviour.case import add, case, sample
from tests.behaviour.elsewhere import Descriptor, chain, counted, nameless, plain, recursive, scaled, swiglu
from tests.behaviour.parts import Called, Mlp

# --- what stands in self.act ---

for name, act, saves in [
    ("nn.GELU", nn.GELU(), 1),
    ("nn.GELU tanh", nn.GELU("tanh"), 1),
    ("nn.SiLU", nn.SiLU(), 1),
    (
        "nn.SiLU inplace",
        nn.SiLU(inplace=True),
        1,
    ),  # PyTorch clones what it overwrites? it keeps the input all the same
    ("nn.Mish", nn.Mish(), 1),
    ("F.silu", F.silu, 1),
    ("F.gelu", F.gelu, 1),
    ("partial tanh", partial(F.gelu, approximate="tanh"), 1),
    ("partial inplace", partial(F.silu, inplace=False), 1),
    ("torch.ops.aten", torch.ops.aten.silu, 0),
    ("torch._C._nn", torch._C._nn.gelu, 1),
    ("transformers gelu", ACT2FN["gelu"], 1),
    ("transformers gelu_new", ACT2FN["gelu_new"], 1),
    ("transformers gelu_python", ACT2FN["gelu_python"], 1),
    ("transformers gelu_fast", ACT2FN["gelu_fast"], 1),
    ("transformers quick_gelu", ACT2FN["quick_gelu"], 1),
    ("transformers silu", ACT2FN["silu"], 1),
    ("transformers mish", ACT2FN["mish"], 1),
    ("nested Sequential", nn.Sequential(nn.Sequential(nn.GELU())), 1),
    ("nn.ReLU", nn.ReLU(), 0),
    ("nn.Tanh", nn.Tanh(), 0),
    ("nn.ELU", nn.ELU(), 0),
    ("nn.Hardswish", nn.Hardswish(), 0),
    ("nn.LeakyReLU", nn.LeakyReLU(), 0),
    ("nn.Softplus", nn.Softplus(), 0),
    ("nn.PReLU", nn.PReLU(), 0),
    ("nn.RReLU", nn.RReLU(), 0),
    ("nn.Softmax", nn.Softmax(-1), 0),
]:
    add(f"calls: self.act is {name}", partial(Called, act), saves=saves)


@case(saves=1)
class ActIsLambda(Mlp):
    def __init__(self):
        super().__init__(act=partial(_call_gelu, 1.0))

    def forward(self, x):
        return self.down(self.act(self.gate(x)))


def _call_gelu(scale, x):
    return F.gelu(x) if scale == 1.0 else torch.tanh(x)


class _WithLambda(Mlp):
    def __init__(self):
        super().__init__(act=lambda v: F.gelu(v, approximate="tanh"))

    def forward(self, x):
        return self.down(self.act(self.gate(x)))


add("calls: self.act is a lambda", _WithLambda, saves=1)  # neither can be pickled


# --- how it is written ---


@case(saves=1, tools=True)
class Keyword(Mlp):
    def forward(self, x):
        return self.down(F.gelu(input=self.gate(x)))


@case(saves=2)
class KeywordGate(Mlp):
    def forward(self, x):
        return self.down(torch.nn.functional.gelu(approximate="tanh", input=self.gate(x)) * self.up(x))


@case(saves=1)
class Unpacked(Mlp):
    def forward(self, x):
        args, options = (self.gate(x),), {"approximate": "tanh"}
        return self.down(F.gelu(*args, **options))


@case(saves=1)
class ImportedName(Mlp):
    def forward(self, x):
        return self.down(imported(self.gate(x)))


@case(saves=1)
class FullName(Mlp):
    def forward(self, x):
        return self.down(functional.mish(self.gate(x)))


@case(saves=1)
class LocalImport(Mlp):
    def forward(self, x):
        from torch.nn.functional import gelu as inner

        return self.down(inner(self.gate(x)))


@case(saves=1)
class LocalName(Mlp):
    def forward(self, x):
        act = self.act
        y = act(self.gate(x))
        return self.down(y)


@case(saves=1)
class LocalChoice(Mlp):
    def forward(self, x):
        act = F.gelu if self.training else F.silu
        return self.down(act(self.gate(x)))


@case(saves=1)
class Shadowed(Mlp):
    """A local name hides the module that the global one means."""

    def forward(self, x, F=torch.nn.functional):  # noqa: N803
        return self.down(F.gelu(self.gate(x)))


class _Impostor:
    @staticmethod
    def gelu(x):
        return x * 2


@case(left="")
class ShadowedByAnother(Mlp):
    def forward(self, x):
        F = _Impostor
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class Getattr(Mlp):
    def forward(self, x):
        return self.down(getattr(self, "act")(self.gate(x)))  # noqa: B009


@case(saves=1)
class CalledByDunder(Mlp):
    def forward(self, x):
        return self.down(self.act.__call__(self.gate(x)))


@case()
class ForwardCalled(Mlp):
    """Hooks are passed over here, as in the original."""

    def forward(self, x):
        return self.down(self.act.forward(self.gate(x)))


@case(saves=1)
class NewEachTime(Mlp):
    def forward(self, x):
        return self.down(nn.GELU()(self.gate(x)))


@case(saves=1)
class ByTable(Mlp):
    def forward(self, x):
        return self.down(ACT2FN["gelu"](self.gate(x)))


@case(saves=1)
class GlobalObject(Mlp):
    def forward(self, x):
        return self.down(gelu(self.gate(x)))


@case(saves=1)
class OwnTable(Mlp):
    def forward(self, x):
        return self.down(elsewhere.ACTIVATIONS["gelu"](self.gate(x)))


class _Indexed(Mlp):
    def __init__(self, container):
        super().__init__()
        self.acts = container([nn.GELU(), nn.SiLU()])

    def forward(self, x):
        return self.down(self.acts[1](self.gate(self.down(self.acts[0](self.gate(x))))))


for container in (nn.ModuleList, list, tuple):
    add(f"calls: self.acts[i] of a {container.__name__}", partial(_Indexed, container), saves=2)


class _Keyed(Mlp):
    def __init__(self, container):
        super().__init__()
        self.acts = container({"a": nn.GELU(), "b": nn.SiLU()})

    def forward(self, x):
        return self.down(self.acts["a"](self.gate(self.down(self.acts["b"](self.gate(x))))))


for container in (nn.ModuleDict, dict):
    add(f"calls: self.acts[key] of a {container.__name__}", partial(_Keyed, container), saves=2)


@case(saves=2)
class LoopOverModules(Mlp):
    def __init__(self):
        super().__init__()
        self.acts = nn.ModuleList([nn.GELU(), nn.SiLU()])

    def forward(self, x):
        for act in self.acts:
            x = self.down(act(self.gate(x)))
        return x


@case(saves=1)
class Property(Mlp):
    @property
    def activation(self):
        return self.act

    def forward(self, x):
        return self.down(self.activation(self.gate(x)))


@case(saves=1)
class PropertyWithCode(Mlp):
    @property
    def hidden(self):
        return F.gelu(self._x)

    def forward(self, x):
        self._x = self.gate(x)
        y = self.down(self.hidden)
        del self._x
        return y


@case(saves=1)
class Static(Mlp):
    @staticmethod
    def activated(x):
        return F.gelu(x)

    def forward(self, x):
        return self.down(self.activated(self.gate(x)))


@case(saves=1)
class OfTheClass(Mlp):
    factor = 2.0

    @classmethod
    def product(cls, gate, up):
        return F.silu(gate) * up * cls.factor

    def forward(self, x):
        return self.down(type(self).product(self.gate(x), self.up(x)))


@case(saves=1)
class ClassHolds(Mlp):
    activation = nn.GELU()

    def forward(self, x):
        return self.down(self.activation(self.gate(x)))


@case(saves=1)
class StaticFunctionHeld(Mlp):
    activation = staticmethod(F.gelu)

    def forward(self, x):
        return self.down(self.activation(self.gate(x)))


@case(saves=1, tools=True)
class PrivateName(Mlp):
    def __init__(self):
        super().__init__()
        self.__act = nn.GELU()

    def __activated(self, x):
        return self.__act(x)

    def forward(self, x):
        return self.down(self.__activated(self.gate(x)))


# --- functions elsewhere ---


class _Fused(Mlp):
    def __init__(self):
        super().__init__()
        self.both = nn.Linear(16, 64)


@case(saves=1, tools=True)
class FunctionElsewhere(_Fused):
    def forward(self, x):
        return self.down(swiglu(self.both(x)))


@case()  # the activation is an argument: nothing tells what it is
class FunctionChain(_Fused):
    def forward(self, x):
        return self.down(elsewhere.chain(self.both(x)) + chain(self.both(x), act="gelu"))


@case(saves=1)
class FunctionPlain(Mlp):
    def forward(self, x):
        return self.down(plain(self.gate(x)))


@case(saves=1, change=lambda model, patch: patch.setattr(elsewhere, "plain", torch.tanh))
class FunctionPatchedElsewhere(Mlp):
    def forward(self, x):
        return self.down(elsewhere.plain(self.gate(x)))


@case()
class FunctionRecursive(Mlp):
    def forward(self, x):
        return self.down(recursive(self.gate(x), 3))


def _here(x, u):
    return F.silu(x).mul(u)


@case(saves=2)
class FunctionHere(Mlp):
    def forward(self, x):
        return self.down(_here(self.gate(x), self.up(x)))


@case(saves=2)
class FunctionHeld(Mlp):
    def __init__(self):
        super().__init__()
        self.product = _here

    def forward(self, x):
        return self.down(self.product(self.gate(x), self.up(x)))


@case()
class Applied(Mlp):
    """Python itself calls the activation."""

    def forward(self, x):
        (h,) = map(F.gelu, [self.gate(x)])
        return self.down(functools.reduce(lambda v, act: act(v), [F.silu], h))


# --- decorators and closures ---


@case(saves=1, tools=True)
class Decorated(Mlp):
    @counted
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case(saves=2)
class StackedDecorators(Mlp):
    @counted
    @scaled(2.0)
    @counted
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


@case()
class DecoratedHelper(Mlp):
    @scaled(factor=0.5, times=2)
    def _activated(self, x):
        return F.gelu(x)

    @torch.no_grad()
    def _unused(self, x):
        return F.gelu(x)

    def forward(self, x):
        return self.down(self._activated(self.gate(x)))


@case(saves=1)
class EnableGrad(Mlp):
    @torch.enable_grad()
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case(saves=0)
class NoGradDecorator(Mlp):
    @torch.no_grad()
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case()
class DecoratedNameless(Mlp):
    @nameless
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case()
class DecoratedByClass(Mlp):
    @Descriptor
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class DynamoDisabled(Mlp):
    @torch._dynamo.disable
    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case()
class Cached(Mlp):
    @functools.cached_property
    def table(self):
        return F.gelu(torch.linspace(-1, 1, 32))

    def forward(self, x):
        return self.down(F.gelu(self.gate(x)) + self.table.to(x.dtype))


def _closing_over(act, factor):
    class Closed(Mlp):
        def forward(self, x):
            return self.down(act(self.gate(x)) * factor)

    Closed.__qualname__ = Closed.__name__ = f"Closed{factor}"
    return Closed


Closed1, Closed2 = _closing_over(F.gelu, 1), _closing_over(F.silu, 2)


@case()
class TwoOfOneCode(Mlp):
    """Two classes with one code object and other closures."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Closed1(), Closed2()

    def forward(self, x):
        return self.two(self.one(x))


# --- inheritance ---


class Parent(Mlp):
    def helper(self, x):
        return F.gelu(self.gate(x))

    def forward(self, x):
        return self.down(self.helper(x))


@case(saves=1)
class Inherited(Parent):
    pass


@case(tools=True)
class ByZeroArgumentSuper(Parent):
    def helper(self, x):
        return super().helper(x) * 2

    def forward(self, x):
        return super().forward(x) + 1


@case()
class ByTwoArgumentSuper(ByZeroArgumentSuper):
    def forward(self, x):
        return super(ByZeroArgumentSuper, self).forward(x) - 1


@case(saves=1)
class ByNameOfTheParent(Parent):
    def forward(self, x):
        return Parent.forward(self, x) + Parent.helper(self, x).mean()


class Mixin:
    def helper(self, x):
        return super().helper(x) + 1


class Other(Parent):
    def helper(self, x):
        return F.silu(self.up(x)) + super().helper(x)


@case()
class Diamond(Mixin, Other, Parent):
    def forward(self, x):
        return __class__.__name__ and super().forward(x)


@case(saves=1, change=lambda model, patch: patch.setattr(Parent, "helper", lambda self, x: self.up(x)))
class ParentPatched(Parent):
    def forward(self, x):
        return super().forward(x) + 1


@case(saves=2)
class CallsItself(Mlp):
    def forward(self, x, again=True):
        y = self.down(F.gelu(self.gate(x)))
        return self(y, again=False) if again else y


@case(saves=1)
class CallOverridden(Mlp):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * 2

    def forward(self, x):
        return self.down(F.gelu(self.gate(x)))


@case(saves=1)
class AsksForItsClass(Mlp):
    def forward(self, x):
        y = self.down(F.gelu(self.gate(x)))
        return y * 2 if isinstance(self, AsksForItsClass) and type(self).__name__ == "AsksForItsClass" else y


@case()
class ExactType(Mlp):
    """Asks for the very class: a conversion by subclass must not be told apart, or be left."""

    def forward(self, x):
        return self.down(F.gelu(self.gate(x))) * (2 if type(self) is ExactType else 3)


class _Slots(Mlp):
    __slots__ = ("extra",)


@case(saves=1)
class WithSlots(_Slots):
    def __getattr__(self, name):
        return 2.0 if name == "missing" else super().__getattr__(name)

    def forward(self, x):
        return self.down(F.gelu(self.gate(x))) * self.missing


class _Child(Mlp):
    def forward(self, h):
        h += 1.0
        return F.silu(self.gate(h))


@case(saves=1)
class ChildChangesItsInput(Mlp):
    def __init__(self):
        super().__init__()
        self.child = _Child()

    def forward(self, x):
        h = x * 1
        y = self.child(h)
        return self.down(y) + h


@case(saves=4)
class Tied(Mlp):
    def __init__(self):
        super().__init__()
        self.one = Called(nn.GELU())
        self.two = self.one
        self.again = self.act
        self.seq = nn.Sequential(nn.Linear(16, 32), self.act, nn.Linear(32, 16))

    def forward(self, x):
        return self.seq(self.two(self.one(x))) + self.down(self.again(self.gate(x)))


def _weight_normed():
    model = Called(nn.GELU())
    nn.utils.parametrizations.weight_norm(model.gate)
    nn.utils.parametrizations.spectral_norm(model.down)
    return model


def _itself_parametrized():
    model = RawParameters()
    nn.utils.parametrize.register_parametrization(model, "w", nn.Tanh())
    return model


class RawParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(sample(32, 16)), nn.Parameter(sample(16, 32))

    def forward(self, x):
        return F.linear(F.gelu(F.linear(x, self.w)), self.v)


def _with_old_weight_norm():
    import warnings

    model = Called(nn.SiLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.gate)
    return model


add("calls: raw parameters", RawParameters, saves=1, tools=True)
add("calls: weight_norm, spectral_norm", _weight_normed, saves=1)
add("calls: weight_norm by hooks", _with_old_weight_norm, saves=1)
add("calls: a parametrized module of one's own", _itself_parametrized, saves=1)


class _WithScripted(Mlp):
    def __init__(self):
        super().__init__()
        self.scripted = torch.jit.script(Called(nn.GELU()))
        self.traced = torch.jit.trace(Called(nn.SiLU()), sample())

    def forward(self, x):
        return self.scripted(self.traced(self.down(F.gelu(self.gate(x)))))


add("calls: TorchScript children", _WithScripted, saves=1)
