"""How far the gradients of norms are from float64 mathematics, beside an ideal kernel and the norm's own backward.

    python -m benchmarks.norm_accuracy                       the tables of docs/norms.md
    python -m benchmarks.norm_accuracy --device cuda         on a GPU

An error is the Euclidean norm of the difference, divided by that of the exact gradient. The *ideal* kernel keeps the
input, has exact statistics, computes in float32 and rounds once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from optiacts import functional_norm
from optiacts.backends import eager_norm
from optiacts.norms import Norm

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EPS = 1e-6
ROWS, CHANNELS = 2048, 768


@dataclass(frozen=True)
class Form:
    """A way to write a norm, and what it is."""

    kind: Norm
    forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    biased: bool = False


def _llama(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
    return w * h.to(x.dtype)


def _gemma(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
    return (h * (1.0 + w.float())).type_as(x)


FORMS = {
    "layer_norm": Form(
        Norm(True, EPS, remainder=True), lambda x, w, b: functional.layer_norm(x, w.shape, w, b, EPS), biased=True
    ),
    "rms_norm": Form(Norm(False, EPS, remainder=True), lambda x, w, b: functional.rms_norm(x, w.shape, w, EPS)),
    "written out (Llama)": Form(Norm(False, EPS), _llama),
    "written out (Gemma)": Form(Norm(False, EPS, offset=1.0, remainder=True), _gemma),
}


@dataclass(frozen=True)
class Case:
    """How input, weight, bias and gradient are distributed."""

    outliers: float = 1.0  # one channel in fifty is so many times larger
    correlated: float = 0.0  # the gradient is N(0, 1) plus so much of the normalised input
    weights: Callable[[Tensor, Tensor], None] = lambda w, b: None  # changes weight and bias in place


def _dead(w: Tensor, b: Tensor) -> None:
    w[::100], b[5] = 0.0, 0.0


def _tiny(w: Tensor, b: Tensor) -> None:
    w[::100] = 1e-39


def _biased(w: Tensor, b: Tensor) -> None:
    b[::100] = 128 * w[::100]
    b[1::3] = 0.9 * w[1::3]


def _many(w: Tensor, b: Tensor) -> None:
    w[::10] = 0.0


DATA = {
    "normal": Case(),
    "channels 40 times larger": Case(outliers=40.0),
    "gradients correlated, 0.3": Case(correlated=0.3),
    "gradients correlated, 1": Case(correlated=1.0),
    "dead weights": Case(weights=_dead),
    "tiny weights": Case(weights=_tiny),
    "large biases": Case(weights=_biased),
    "a tenth dead": Case(weights=_many),
}


@dataclass(frozen=True)
class Errors:
    """Of dx, dw and db: ours, the ideal kernel's, and those of the norm's own backward."""

    ours: tuple[float, ...]
    ideal: tuple[float, ...]
    own: tuple[float, ...]

    def within(self, share: float) -> bool:
        """The contract: at most ``share`` times the ideal kernel's, or 1.1 times the norm's own."""
        triples = zip(self.ours, self.ideal, self.own, strict=True)
        return all(ours <= max(share * ideal, 1.1 * own) for ours, ideal, own in triples)


def errors(form: str, data: str, dtype: torch.dtype, device: str = "cpu", rows: int = ROWS) -> Errors:
    """The errors of one form on one kind of data."""
    how, case = FORMS[form], DATA[data]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w, b = normal(rows, CHANNELS), 1 + 0.2 * normal(CHANNELS), 0.1 * normal(CHANNELS)
    x[:, ::50] *= case.outliers
    case.weights(w, b)
    w = w - how.kind.offset
    x, w, b = (t.to(device, dtype).requires_grad_() for t in (x, w, b))
    given = (x, w, b) if how.biased else (x, w)
    wide = [t.detach().double().requires_grad_() for t in given]
    exact = how.kind.reference(wide[0], wide[1], wide[2] if how.biased else None)
    mean, rstd = how.kind.statistics(wide[0].detach())
    x_hat = (wide[0].detach() - mean) * rstd
    grad = (normal(rows, CHANNELS).to(device) + case.correlated * x_hat).to(dtype)
    truth = torch.autograd.grad(exact, wide, grad.double())

    def forward(t: Tensor) -> Tensor:
        return how.forward(t, w, b if how.biased else None)

    own = torch.autograd.grad(forward(x), given, grad)
    kept = functional_norm.norm(x, w, b if how.biased else None, how.kind, forward)
    ours = torch.autograd.grad(kept, given, grad)
    scale = how.kind.scale(w.detach())
    found = eager_norm.gradients(grad.float(), x_hat.float(), rstd.float(), scale, how.kind.centered)
    ideal = [gradient.to(dtype) for gradient in found[: len(given)]]

    def relative(found: list[Tensor] | tuple[Tensor, ...]) -> tuple[float, ...]:
        return tuple(float((f.double() - t).norm() / t.norm()) for f, t in zip(found, truth, strict=True))

    return Errors(relative(ours), relative(ideal), relative(own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    arguments = parser.parse_args()
    gradients = [f"{name}, {gradient}" for name in arguments.dtypes for gradient in ("dx", "dw")]
    print("| norm | data | " + " | ".join(gradients) + " |\n|---|---|" + "---:|" * len(gradients))
    for form in FORMS:
        for data in DATA:
            cells = [form, data]
            for name in arguments.dtypes:
                e = errors(form, data, DTYPES[name], arguments.device)
                for ours, ideal, own in zip(e.ours[:2], e.ideal, e.own, strict=False):
                    cells.append(f"{ours / ideal:.2f} ({own / ideal:.1f})")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
