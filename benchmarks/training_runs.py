"""Trainings and gradients of one task with different activations, and the verdicts on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training_tasks import Batch, Task
from optiacts import curves
from optiacts.backends.eager_norm import gradients
from optiacts.decoders.inverse import derivative_from_output
from optiacts.norms import Norm

Change = Callable[[nn.Module], object]  # what is done to a model before training, such as optiacts.convert


def unchanged(model: nn.Module) -> None:
    """PyTorch as it is."""


class _SideBitsLost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, bits = torch.ops.optiacts.activation_forward(x, "gelu", [])
        ctx.save_for_backward(y, torch.zeros_like(bits))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.optiacts.activation_backward(grad, *ctx.saved_tensors, "gelu", [])


class SideBitsLost(nn.Module):
    """GELU with the bug that an output-saving activation might have: every x is taken for right of the minimum."""

    def forward(self, x: Tensor) -> Tensor:
        return _SideBitsLost.apply(x)


def lose_side_bits(model: nn.Module) -> None:
    """Puts ``SideBitsLost`` where the model has torch.nn.GELU."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.GELU):
                setattr(parent, name, SideBitsLost())


class _Inverted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = functional.gelu(x)
        ctx.save_for_backward(y, curves.get("gelu").left(x))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, left = ctx.saved_tensors
        return (grad * derivative_from_output(curves.get("gelu"), y.double(), left)).to(grad.dtype)


class InvertedGELU(nn.Module):
    """GELU whose slope is got from its output by exact inversion: as good as the output allows.

    PyTorch's float32 GELU is off by several units in the last place near its minimum, with AVX2 more than elsewhere.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Inverted.apply(x)


def invert_gelus(model: nn.Module) -> None:
    """Puts ``InvertedGELU`` where the model has a GELU, PyTorch's or transformers'."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in ("GELU", "GELUActivation"):
                setattr(parent, name, InvertedGELU())


class _Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y = functional.layer_norm(x, weight.shape, weight, bias, eps)
        _, rstd = Norm(True, eps).statistics(x)
        ctx.save_for_backward(y, weight, bias, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        y, weight, bias, rstd = ctx.saved_tensors
        clamped = torch.where(weight < 0, -1, 1) * weight.abs().clamp(min=ctx.eps)
        return *gradients(grad, (y - bias) / clamped, rstd, weight, centered=True), None


class ClampedNorm(nn.LayerNorm):
    """LayerNorm from its output by the plain rule: divide by the weight, clamped to eps where it is near 0."""

    def forward(self, input: Tensor) -> Tensor:
        return _Clamped.apply(input, self.weight, self.bias, self.eps)


def clamp_norms(model: nn.Module) -> None:
    """Makes ``ClampedNorm`` of every torch.nn.LayerNorm of the model."""
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = ClampedNorm


@dataclass(frozen=True)
class Training:
    """The loss of every step, and the loss on held-out text before and after."""

    losses: tuple[float, ...]
    before: float
    after: float


def train(task: Task, seed: int, bfloat16: bool, change: Change) -> Training:
    """AdamW, learning rate falling to zero; everything random comes from ``seed``."""
    torch.manual_seed(seed)
    model = task.build()
    change(model)
    before = _held_out_loss(task, model, bfloat16)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, task.steps)
    losses = []
    torch.manual_seed(seed)  # for dropout
    for _, batch in zip(range(task.steps), task.batches(seed), strict=False):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return Training(tuple(losses), before, _held_out_loss(task, model, bfloat16))


@torch.no_grad()
def _held_out_loss(task: Task, model: nn.Module, bfloat16: bool) -> float:
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return fmean(task.loss(model, batch).item() for batch in task.held_out)


@dataclass(frozen=True)
class Comparison:
    """Trainings with the same seeds, with PyTorch's activations and with others."""

    torch: tuple[Training, ...]
    ours: tuple[Training, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Of the held-out losses after training, seed by seed."""
        return tuple(b.after - a.after for a, b in zip(self.torch, self.ours, strict=True))

    @property
    def difference(self) -> float:
        return fmean(self.differences)

    @property
    def spread(self) -> float:
        """The standard deviation of PyTorch's held-out losses from seed to seed."""
        return stdev(run.after for run in self.torch)

    @property
    def same_start(self) -> bool:
        """The first loss of every seed is the same to the bit, since the forward is."""
        return all(a.losses[0] == b.losses[0] for a, b in zip(self.torch, self.ours, strict=True))

    @property
    def share(self) -> float:
        """The mean difference as a share of the spread."""
        return abs(self.difference) / self.spread

    @property
    def within_spread(self) -> bool:
        """The mean difference is at most a tenth of the spread; false for NaN.

        A whole spread would be too blunt: the control, with all side bits lost, stays within it.
        """
        return self.share <= 0.1


@dataclass(frozen=True)
class LayerGradient:
    """How the gradients of one layer's parameters, taken as one vector, lie to each other.

    ``angle`` is 1 - cosine between ours and PyTorch's; the errors are ||g - exact|| / ||exact||, with the gradients
    of the same weights in float64 as the exact ones.
    """

    layer: str
    angle: float
    torch_error: float
    inversion_error: float  # with the slopes of GELUs from their outputs, exactly inverted
    our_error: float
    rounding: float

    @property
    def good(self) -> bool:
        """At most a tenth more than PyTorch's error, or than outputs allow, plus what is granted to f'(x) itself."""
        return self.our_error <= 1.1 * max(self.torch_error, self.inversion_error) + self.rounding


def layer_gradients(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch, bfloat16: bool, change: Change
) -> list[LayerGradient]:
    """Compares gradients layer by layer, without dropout. ``model`` (float32) is left as it is."""
    exact = _gradients(copy.deepcopy(model).double(), loss, batch, False)
    theirs = _gradients(copy.deepcopy(model), loss, batch, bfloat16)
    inverted = copy.deepcopy(model)
    invert_gelus(inverted)
    best = _gradients(inverted, loss, batch, bfloat16)
    changed = copy.deepcopy(model)
    change(changed)
    ours = _gradients(changed, loss, batch, bfloat16)
    rounding = torch.finfo(torch.bfloat16).eps if bfloat16 else 2e-6  # the accuracy contract
    return [
        LayerGradient(
            layer=layer,
            angle=_angle(ours[layer], theirs[layer]),
            torch_error=float((theirs[layer] - exact[layer]).norm() / exact[layer].norm()),
            inversion_error=float((best[layer] - exact[layer]).norm() / exact[layer].norm()),
            our_error=float((ours[layer] - exact[layer]).norm() / exact[layer].norm()),
            rounding=rounding,
        )
        for layer in exact
    ]


def _angle(a: Tensor, b: Tensor) -> float:
    """1 - cosine, without the cancellation: half the squared distance of the unit vectors."""
    return float((a / a.norm() - b / b.norm()).square().sum() / 2)


def _gradients(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch, bfloat16: bool
) -> dict[str, Tensor]:
    """One float64 vector per layer: ``layer 3``, or the first part of the parameters' names."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        value = loss(model, batch)
    value.backward()
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            words = name.split(".")
            number = next((word for word in words if word.isdecimal()), None)
            layer = words[0] if number is None else f"layer {number}"
            parts.setdefault(layer, []).append(parameter.grad.double().flatten())
    return {layer: torch.cat(vectors) for layer, vectors in parts.items()}
