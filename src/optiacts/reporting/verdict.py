"""The last line: what fits a card, and the smallest change that makes it fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from optiacts.reporting.choices import Option
from optiacts.reporting.sizes import in_words

_TIGHT = 2**30  # what the CUDA context and fragmentation may take


class Verdict(NamedTuple):
    """Whether the training fits as it is, and what is to be said; true if it fits."""

    fits: bool
    words: str

    def __bool__(self) -> bool:
        return self.fits

    def __str__(self) -> str:
        return self.words


def verdict(
    options: Sequence[Option], memory: int, partial: Sequence[Option] = (), longest: int | None = None
) -> Verdict:
    """Of the options in the order of what they cost; ``partial`` are those with some layers checkpointed.

    ``longest``: the most tokens in a sample that fit as it is, where not even one sample does.
    """
    now = options[0]
    card = in_words(memory)
    fitting = [option for option in options if option.peak <= memory]
    if now.peak <= memory:
        ours = next((option for option in fitting if option.choice.words == "OptiActs"), None)
        words = f"fits {card} with batch {now.largest_batch(memory)}"
        if ours is not None and ours.largest_batch(memory) > now.largest_batch(memory):
            words += f"; with OptiActs batch {ours.largest_batch(memory)}"
        return Verdict(True, words + _tight(now.peak, memory) + ".")
    missing = f"As it is, it needs {in_words(now.peak)}, {in_words(now.peak - memory)} more than {card}"
    tokens = f" (the longest sample that fits has {longest} tokens)" if longest else ""
    if not fitting:
        least = min(options, key=lambda option: option.peak)
        return Verdict(
            False,
            f"{missing}{tokens}, and nothing here makes it fit: the least, {least.choice.words}, needs "
            f"{in_words(least.peak)}.",
        )
    first = fitting[0]
    if first.choice.words == "OptiActs":
        others = [option for option in (*partial, *fitting) if not option.choice.optiacts]
        without = f"without OptiActs it needs {_needs(others[0])}" if others else "nothing else here does"
        batch = f"batch {first.largest_batch(memory)}{_tight(first.peak, memory)}"
        return Verdict(False, f"With OptiActs it fits {card} with {batch}; {without}.")
    smallest = [option for option in partial if option.choice.optiacts == first.choice.optiacts]
    chosen = smallest[0] if smallest and first.choice.checkpoints else first
    then = f"{in_words(chosen.peak)}, batch {chosen.largest_batch(memory)}{_tight(chosen.peak, memory)}"
    needed = f"The smallest change here that makes it fit is {_needs(chosen)}: {then}"
    return Verdict(False, f"{missing}{tokens}. {needed}.")


def verdict_alone(now: int, converted: int | None, memory: int) -> Verdict:
    """Of the bytes at the peak as it is and, where there is a conversion, after it; nothing else was run."""
    card = in_words(memory)
    if now <= memory:
        return Verdict(True, f"fits {card}: a step needs {in_words(now)}{_tight(now, memory)}.")
    words = f"does not fit {card}: a step needs {in_words(now)}, {in_words(now - memory)} more"
    if converted is not None and converted <= memory:
        words += f"; with OptiActs it needs {in_words(converted)} and fits{_tight(converted, memory)}"
    elif converted is not None:
        words += f"; with OptiActs {in_words(converted)}, {in_words(converted - memory)} more"
    return Verdict(False, words + ".")


def _needs(option: Option) -> str:
    """The choice, with how many layers are checkpointed, and what that takes."""
    choice, words = option.choice, option.choice.words
    if choice.checkpoints:
        which = (
            "every layer"
            if choice.checkpoints == option.layers
            else (f"the first {choice.checkpoints} of {option.layers} layers")
        )
        words = words.replace("checkpointing", f"checkpointing of {which}")
    more = option.more_work or 0
    return words + (f", about {more:.0%} more time" if more > 0.005 else "")


def _tight(peak: float, memory: int) -> str:
    spare = memory - peak
    return f" (tight: {in_words(spare)} is left for what is not counted)" if spare < _TIGHT < memory / 4 else ""
