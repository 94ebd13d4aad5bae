"""The published idea in its own formula, to stand beside ours: GELU and SiLU that keep their output and a bit.

"Inverted Activations" (arXiv 2407.15545) reads f'(x) from y = f(x) with a formula for each side of the minimum. The
formulas and their constants are those of its authors' prototype (github.com/PgLoLo/optiacts at 1d7a1e4), and so is
what is compiled; but for a clamp in SiLU's, without which bfloat16 gives NaN at the minimum. Only for comparison: the
error of f' is up to 1.9e-2 (GELU) and 2.9e-3 (SiLU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optiacts.packing import pack, unpack

GELU_MINIMUM, SILU_MINIMUM = (
    (-0.751791524693564457, -0.16997120747990369),
    (-1.278464542761073795, -0.2784645427610738),
)


def gelu_slope(y: Tensor, left: Tensor) -> Tensor:
    """f'(x) of GELU."""
    lowest = GELU_MINIMUM[1]
    share = ((y - lowest) / -lowest).clamp(0, 1)
    on_the_left = 0.0012176597919768537 - 0.2964121012745849 * share**0.44236329315571304 * (
        (1 - share) ** 0.8312705290392689
    )
    height = (y - lowest).clamp(min=0)
    fading = torch.exp((-2.1198850898439496 - height) ** 3 * 0.03214673676937606)
    along = -1.383717971214795 + 1.5584201843500274 * height.sqrt() + 0.04404574801811055 * height
    return torch.where(left, on_the_left, 1 + along * fading)


def silu_slope(y: Tensor, left: Tensor) -> Tensor:
    """f'(x) of SiLU: sigmoid(x) by the formula, and s * (1 - y) + y."""
    height = (y - SILU_MINIMUM[1]).clamp(min=0)
    root = height.sqrt()
    on_the_left = 0.21717700759576886 + height * (0.07963139766917564 + height * 0.3574942048593756)
    on_the_left = on_the_left - 0.5076843705082636 * root
    fading = torch.exp((-5.770613302664509 - height) ** 3 * 0.0026961639850448835)
    on_the_right = 1 + fading * (-1.3108564021309803 + 0.8485896470316523 * root - 0.16299051259510922 * height)
    return torch.where(left, on_the_left, on_the_right) * (1 - y) + y


def _steps(
    function: Callable[[Tensor], Tensor], slope: Callable[[Tensor, Tensor], Tensor], minimum: float
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What forward and backward compute."""

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return function(x), pack(x < minimum)

    def backward(grad: Tensor, y: Tensor, bits: Tensor) -> Tensor:
        return grad * slope(y, unpack(bits, y.shape))

    return forward, backward


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Any, backward: Any) -> Tensor:
        y, bits = forward(x)
        ctx.save_for_backward(y, bits)
        ctx.backward_of = backward
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.backward_of(grads[0], *ctx.saved_tensors), None, None


class Inverted(nn.Module):
    """In the place of nn.GELU or nn.SiLU; ``compiled`` as the prototype is."""

    def __init__(self, replaced: nn.Module, compiled: bool = True) -> None:
        super().__init__()
        if isinstance(replaced, nn.GELU):
            steps = _steps(functional.gelu, gelu_slope, GELU_MINIMUM[0])
        else:
            steps = _steps(functional.silu, silu_slope, SILU_MINIMUM[0])
        self.steps = tuple(torch.compile(step) for step in steps) if compiled else steps

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Kept.apply(x, *self.steps)
        return y


def invert(model: nn.Module, compiled: bool = True) -> None:
    """Puts ``Inverted`` in the place of every GELU and SiLU of ``model``."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.GELU, nn.SiLU)):
                setattr(module, name, Inverted(child, compiled))
