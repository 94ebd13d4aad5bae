"""Derives the coefficients of unimodal curves. Needs mpmath and numpy: ``pip install 'optiacts[fit]'``.

Each part is for itself: ``polynomials`` (float32), ``short`` (16 bits on a GPU), ``valley`` (gated products) and, of
a curve that tells its input, for norms before it, ``preimage`` (CPU), ``gpu_preimage`` and ``short_preimage`` (16
bits on a GPU).
What is fitted is the mathematics, and a forward that is rounded correctly: PyTorch's own differs by CPU. The last
digits of a fit may still differ by machine, so ``refit`` keeps what is there unless it finds something better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optiacts.curves import Curve, Unimodal
from optiacts.decoders.fitting import polynomials, preimage, short, valley
from optiacts.decoders.fitting.quality import FitError, Quality

PARTS: dict[str, Callable[[Curve], Any]] = {
    "polynomials": polynomials.Problem,
    "short": short.Problem,
    "valley": valley.Problem,
    "preimage": preimage.Problem,
    "gpu_preimage": preimage.Gpu,
    "short_preimage": preimage.Short,
}
BETTER = 0.99  # a fit is better if it leaves so much of the old one's error


@dataclass(frozen=True)
class Refit:
    """One part of a curve's coefficients, fitted again. ``data`` is what to use, ``changed`` whether it is new."""

    part: str
    data: Mapping[str, Any]
    qualities: tuple[Quality, ...]
    before: tuple[Quality, ...]  # empty if there was nothing
    changed: bool


def fit(curve: Curve, parts: Sequence[str] = tuple(PARTS)) -> dict[str, Any]:
    """The coefficients of ``curve``, to be given to ``Unimodal(tail, fitted=...)``.

    Args:
        curve: a unimodal curve; it need not be registered.
        parts: those to derive, of ``PARTS``. Without "short" the curve works
            on CPU only. It takes about 15 of the 20 seconds.

    Raises:
        FitError: a fit misses the accuracy contract; the message advises what to change.
    """
    return {result.part: result.data for result in refit(curve, {}, parts)}


def refit(
    curve: Curve,
    before: Mapping[str, Any],
    parts: Sequence[str] = tuple(PARTS),
    progress: Callable[[str], None] = lambda part: None,
) -> Iterator[Refit]:
    """Derives each of the ``parts`` anew and keeps what ``before`` has, if the new is not better.

    Args:
        curve: a unimodal curve.
        before: the coefficients that there are, perhaps of an earlier definition of the curve; may be empty.
        parts: those to derive.
        progress: called with the name of each part before its fit.

    Raises:
        FitError: a fit misses the accuracy contract.
    """
    if not isinstance(curve.decoder, Unimodal):
        raise FitError(f"{curve.name} is read in closed form: it has no coefficients")
    for part in parts:
        if part.endswith("preimage") and not curve.tells_input:
            continue
        progress(part)
        problem, old = PARTS[part](curve), before.get(part)
        data = problem.derive()
        found, had = problem.judge(data), () if old is None else problem.judge(old)
        better = not had or max(q.share for q in found) < BETTER * max(q.share for q in had)
        kept = found if better else had
        missed = [quality for quality in kept if not quality.share <= 1]  # NaN is no fit either
        if missed:
            raise FitError(f"{curve.name}: {'; '.join(map(str, missed))}. {problem.advice()}")
        yield Refit(part, data if better or old is None else old, kept, had, better)


__all__ = ["PARTS", "FitError", "Quality", "Refit", "fit", "refit"]
