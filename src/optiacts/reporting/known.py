"""What autograd holds, with the activations told apart that conversion knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optiacts.conversion.sites import curve_of
from optiacts.held import sharing as held_sharing
from optiacts.held import trace as held_trace
from optiacts.held.sharing import ActivationSite
from optiacts.held.trace import Trace


def trace(model: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Trace:
    """Runs ``model(*args, **kwargs)`` once and records what autograd holds, and who holds it.

    Args:
        model: a module, or a function that calls modules; on real or on fake tensors.
        args, kwargs: its inputs.
    """
    return held_trace.trace(curve_of, model, *args, **kwargs)


def sharing(model: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[ActivationSite, ...]:
    """Runs ``model(*args, **kwargs)`` once and tells of every activation whether converting it pays.

    Args:
        model: a module, or a function that calls modules, with PyTorch's own activations in it. With fake
            tensors (``torch._subclasses.FakeTensorMode``; ``optiacts.reporting.fake_copy`` makes a fake
            copy of a real model) this takes no memory and changes no state, such as batch statistics.
        args, kwargs: inputs as in training; ``model`` must be in the mode it is trained in.

    Returns:
        One ``ActivationSite`` per evaluation that autograd holds something for, in the order of evaluation:
        the same module called twice gives two. ``without_gain`` has the modules that are not worth converting.
    """
    return held_sharing.sharing(curve_of, model, *args, **kwargs)
