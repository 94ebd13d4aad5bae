"""What the forwards of cases import from another module: functions that hide an activation, and decorators."""

import functools

import torch
from torch.nn import functional as F
from torch.nn.functional import silu

from tests.behaviour.effects import note

ACTIVATIONS = {"gelu": F.gelu, "silu": silu}


def swiglu(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def chain(x, *, act="silu"):
    return _second(x, ACTIVATIONS[act])


def _second(x, act):
    return _third(x, act=act)


def _third(x, act):
    gate, up = torch.split(x, x.shape[-1] // 2, dim=-1)
    return up * act(gate)


def plain(x):
    return silu(x)


def recursive(x, depth):
    return recursive(F.gelu(x), depth - 1) if depth else x


def counted(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        note("counted")
        return function(*args, **kwargs)

    return wrapper


def scaled(factor, times=1):
    calls = 0

    def decorate(function):
        @functools.wraps(function)
        def wrapper(self, *args, **kwargs):
            nonlocal calls
            calls += times
            note("scaled", calls >= times)
            return function(self, *args, **kwargs) * factor

        return wrapper

    return decorate


def nameless(function):
    def wrapper(*args, **kwargs):  # no functools.wraps: nothing leads to the function but the closure
        return function(*args, **kwargs)

    return wrapper


class Descriptor:
    """A decorator that is a class: a bound method of it is neither function nor method."""

    def __init__(self, function):
        self.function = function
        functools.update_wrapper(self, function)

    def __get__(self, instance, owner):
        return functools.partial(self.function, instance)
