"""The detector of ``detector.py`` from the entries of its preset, and images for it."""

from __future__ import annotations

from typing import Any

import torch

from optiacts.reporting.build_config import check_kind
from optiacts.reporting.build_function import fake_parameters_convert
from optiacts.reporting.detector import COARSEST, Detector
from optiacts.reporting.errors import ReportError
from optiacts.reporting.setting import DTYPES, Built, Setting, brief


def from_detector_config(config: dict[str, Any], name: str, setting: Setting) -> Built:
    """The detector of ``config`` with inputs, as ``setting`` says. It has no loss."""
    for option, value in (("seq", setting.seq), ("tokens", setting.tokens), ("attention", setting.attention)):
        if value is not None:
            raise ReportError(f"--{option} means nothing to {name}, a convolutional net; leave it out")
    entries = {key: value for key, value in config.items() if key not in ("model_type", "image_size")}
    for key, value in setting.overrides.items():
        if key not in entries:
            raise ReportError(f"--set {key}=...: {name} has no such entry, but {', '.join(entries)}")
        check_kind(key, value, entries[key])
    side = setting.image_size or config["image_size"]
    if side % COARSEST:
        raise ReportError(f"--image-size must be a multiple of {COARSEST}; got {side}")
    dtype = DTYPES[setting.weights]
    try:
        model = Detector(**(entries | dict(setting.overrides))).train()
        with fake_parameters_convert():
            model.to(dtype)
    except Exception as error:
        raise ReportError(f"{name}: the model cannot be built from its entries ({brief(error)})") from error
    words = {
        "batch": f"{setting.samples} images of {side} x {side}",
        "dtype": setting.weights + " under bfloat16 autocast" * setting.autocast,
        "train mode": setting.training,
        "model": f"{Detector.__name__}, without a loss",
    }
    words |= {key: str(value) for key, value in setting.overrides.items()}
    return Built(model, (torch.zeros(setting.samples, 3, side, side, dtype=dtype),), {}, words)
