"""Dropout as modules without parameters or state: by itself, behind an activation, behind a gated product."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts import curves, functional_dropout


class Dropout(torch.nn.Dropout):
    """``torch.nn.Dropout`` that keeps one bit per element; see ``optiacts.dropout``.

    Args:
        p: the probability of an element to be dropped.
        inplace: write the result into the storage of the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional_dropout.dropout(input, self.p, self.training, self.inplace)


class ActivationDropout(torch.nn.Dropout):
    """The dropout of an activation as one step, with its output and at most one bit kept per element.

    Args:
        activation: any curve in ``optiacts.curves.GATES``: "gelu", "relu", ...; see ``optiacts.activation_dropout``.
        p: the probability of an element to be dropped.

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
    """

    def __init__(self, activation: str, p: float = 0.5) -> None:
        super().__init__(p)
        self.activation = curves.get(activation).name

    def forward(self, input: Tensor) -> Tensor:
        return functional_dropout.activation_dropout(input, self.activation, self.p, self.training)

    def extra_repr(self) -> str:
        return f"{self.activation!r}, p={self.p}"


class GatedDropout(ActivationDropout):
    """The dropout of a gated product act(gate) * up as one step; see ``optiacts.gated_dropout``.

    Args:
        activation: any curve in ``optiacts.curves.GATES``: "silu", "gelu", "relu", ...
        p: the probability of an element to be dropped.

    Raises:
        CurveError: a ``ValueError`` that lists the known names.
    """

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        return functional_dropout.gated_dropout(gate, up, self.activation, self.p, self.training)
