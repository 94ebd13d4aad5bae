"""Every kind of kernel at once, as if each were used: `optiacts doctor --prove` and `make gpu-check`."""

from __future__ import annotations

import itertools

import torch

from optiacts import backends, curves
from optiacts.chains import SavedChain, why_not_chained
from optiacts.norms import Norm, Saved

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (768, 4096)  # of norms


def prove_all(device: torch.device) -> None:
    """Chooses a backend for each kind of kernel on ``device``, which tries it: see ``selection.found``."""
    for name, dtype in itertools.product(_names(), DTYPES):
        curve, x = curves.get(name), torch.empty((1, 1), dtype=dtype, device=device)
        for scaled in (False, True):
            if curve.survives_dropout or not scaled:
                backends.select(x, curve, scaled)
            if curve.gates:
                backends.select_gated(x, curve, scaled)
        if not why_not_chained(name):
            _chains(name, dtype, device)
    factor, number = torch.empty(1, device=device), torch.empty((), device=device)
    for shift, rescued, lost in itertools.product((factor, None), (factor, None), (number, None)):
        backends.select_guard(Norm(True, 1e-5), factor, shift, rescued, lost)
    for dtype in DTYPES:
        backends.select_layer_norm(torch.empty(1, dtype=dtype, device=device))
        backends.select_for_dropout(torch.empty(1, dtype=dtype, device=device))
        for width in WIDTHS:
            _norms(width, dtype, device)


def _names() -> list[str]:
    """Those of all curves, and those of which PyTorch keeps the output but in a gated product."""
    return list(dict.fromkeys((*curves.every_name(), *curves.GATES)))


def _norms(width: int, dtype: torch.dtype, device: torch.device) -> None:
    x, numbers = torch.empty((1, width), dtype=dtype, device=device), torch.empty(width, device=device)
    rstd = torch.empty((1, 1), device=device)
    for centered, remainder in itertools.product((True, False), (True, False)):
        backends.select_norm_statistics(x, x, Norm(centered, 1e-5, remainder=remainder))
        bits = rstd if remainder and dtype.itemsize == 2 else None
        mean = rstd if centered else None
        shift = numbers if centered else None
        for saved in (
            Saved(x, None, rstd, numbers, shift, None, None, bits, centered, True),
            Saved(x, mean, rstd, numbers, shift, numbers, x, bits, centered, True),  # with rescued channels
            Saved(x, mean, rstd, numbers, shift, None, None, None, centered, False),
        ):
            for guarded in (False, True) if saved.output else (False,):
                backends.select_norm_backward(x, saved, dtype, guarded)


def _chains(name: str, dtype: torch.dtype, device: torch.device) -> None:
    y = torch.empty((1, 16, 16), dtype=dtype, device=device)
    backends.select_chain(y, curves.get(name))
    numbers = torch.empty(16, device=device)
    for statistics, last in itertools.product(("rows", "batch", "given"), (False, True)):
        rstd = numbers.view(1, 16)[:, :4] if statistics == "rows" else numbers
        for columns in (None, numbers):
            mean, rescued = (None, None) if columns is None else (rstd, y)
            of = (y, y, rstd, numbers, numbers, mean, columns, rescued, name, statistics, True, last)
            backends.select_chain_backward(y, SavedChain(*of), dtype)
