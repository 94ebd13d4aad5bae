"""Which modules are activations that we have a curve for, by their class; none of their libraries is imported."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import Module, functional

from optiacts import curves

Rule = Callable[[Module], "str | None"]


def _is(curve: str) -> Rule:
    return lambda module: curve


def _approximation(module: Module) -> str | None:
    return {"none": "gelu", "tanh": "gelu_tanh"}.get(getattr(module, "approximate", ""))


def _written_out(python: str, fused: str, curve: str) -> Rule:
    """transformers' modules hold in ``act`` either their own method ``python`` or PyTorch's fused op."""
    return lambda module: curve if getattr(getattr(module, "act", None), "__name__", "") == python else fused


_RULES: dict[tuple[str, str], Rule] = {
    ("torch.nn.modules.activation", "GELU"): _approximation,
    ("torch.nn.modules.activation", "SiLU"): _is("silu"),
    ("torch.nn.modules.activation", "Mish"): _is("mish"),
    ("torch.nn.modules.activation", "ReLU"): _is("relu"),
    ("optiacts.nn", "GELU"): _approximation,
    ("optiacts.nn", "SiLU"): _is("silu"),
    ("optiacts.nn", "Mish"): _is("mish"),
    ("optiacts.nn", "QuickGELU"): _is("quick_gelu"),
    ("transformers.activations", "GELUActivation"): _written_out("_gelu_python", "gelu", "gelu_python"),
    ("transformers.activations", "GELUTanh"): _written_out("_gelu_tanh_python", "gelu_tanh", "gelu_new"),
    ("transformers.activations", "PytorchGELUTanh"): _is("gelu_tanh"),
    ("transformers.activations", "NewGELUActivation"): _is("gelu_new"),
    ("transformers.activations", "AccurateGELUActivation"): _is("gelu_new"),
    ("transformers.activations", "FastGELUActivation"): _is("gelu_fast"),
    ("transformers.activations", "QuickGELUActivation"): _is("quick_gelu"),
    ("transformers.activations", "SiLUActivation"): _is("silu"),
    ("transformers.activations", "MishActivation"): _written_out("_mish_python", "mish", "mish_python"),
    ("timm.layers.activations", "GELU"): _is("gelu"),
    ("timm.layers.activations", "GELUTanh"): _is("gelu_tanh"),
    ("timm.layers.activations", "QuickGELU"): _is("quick_gelu"),
    ("timm.layers.activations", "Swish"): _is("swish"),
    ("timm.layers.activations", "Mish"): _is("mish_python"),
}

_ACTIVATION_LIBRARIES = ("torch.nn.modules.activation", "transformers.activations", "timm.layers.activations")
_KEEPS_RESULT = ("ReLU", "Sigmoid", "Tanh", "ReLU6", "Threshold")
_NOT_POINTWISE = ("MultiheadAttention", "Softmax", "Softmin", "LogSoftmax", "Softmax2d", "GLU", "LinearActivation")

# The same by function: what a forward calls, if it calls no module.
FUNCTIONS: dict[object, str] = {
    functional.gelu: "gelu",
    functional.silu: "silu",
    functional.mish: "mish",
}


def curve_of(module: Module) -> str | None:
    """The curve of an activation module that we know; None for any other module.

    Subclasses may differ in their forward, so only the exact classes count, without one on the instance.
    """
    kind = type(module)
    if "forward" in module.__dict__:
        return None
    curve: str | None = getattr(kind, "optiacts_curve", None)
    if curve is not None:
        return curve
    rule = _RULES.get((kind.__module__, kind.__qualname__))
    return None if rule is None else rule(module)


def gate_of(module: Module) -> str | None:
    """The same for a module whose call may be replaced as a whole: nobody watches it through hooks."""
    hooked = (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
    return None if hooked else curve_of(module)


def saves_input(curve: str) -> bool:
    """Whether PyTorch's own op keeps its input, so that there is something to save. ReLU keeps its result."""
    return curve in curves.CURVES or curve in curves.VARIANTS


def why_left(module: Module) -> str | None:
    """Why an activation module cannot be converted; None if it can, or is no activation."""
    kind = type(module)
    if "forward" in module.__dict__ and (kind.__module__, kind.__qualname__) in _RULES:
        return "its forward was replaced on the instance"
    if not kind.__module__.startswith(_ACTIVATION_LIBRARIES) or kind.__name__ in _NOT_POINTWISE:
        return None
    if next(module.parameters(), None) is not None:
        return "learnable: its parameters' gradient needs the input"
    if kind.__name__ in _KEEPS_RESULT:
        return "PyTorch keeps its result already"
    rule = _RULES.get((kind.__module__, kind.__qualname__))
    if rule is None or rule(module) is None:
        return "no curve for this activation"
    return None
