"""From what a person names (a preset, a config.json, a Hub id, ``module:function``) to a model and its inputs."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from optiacts.reporting.build_config import cached_config, from_config, read_config
from optiacts.reporting.build_detector import from_detector_config
from optiacts.reporting.build_diffusion import from_diffusion_config
from optiacts.reporting.build_function import from_function
from optiacts.reporting.errors import ReportError
from optiacts.reporting.lora import set_train_mode
from optiacts.reporting.presets import DETECTOR, PRESETS
from optiacts.reporting.setting import Built, Setting

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def build(name: str, setting: Setting) -> Built:
    """The model called ``name`` with inputs, on the current device: enter a FakeTensorMode to make it weightless."""
    built = _built(name, setting)
    try:
        set_train_mode(built.model, setting.train_mode, setting.lora)
    except ValueError as error:
        raise ReportError(str(error)) from error
    return built


def _built(name: str, setting: Setting) -> Built:
    path = Path(name)
    if name in PRESETS:
        return _of_config(dict(PRESETS[name]), name, setting)
    if name and path.is_dir():
        return _of_config(read_config(path / "config.json"), name, setting)
    if name.endswith(".json") or path.is_file():
        return _of_config(read_config(path), name, setting)
    if ":" in name:
        return from_function(name, setting)
    if _HUB_ID.fullmatch(name):
        return _of_config(cached_config(name), name, setting)
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}? Otherwise " if near else ""
    raise ReportError(
        f"no model is called {name!r}: {hint}give one of {', '.join(PRESETS)}, the path of a config.json or of the "
        "directory that it is in, a Hub id such as owner/model, or module:function, where the function returns "
        "(model, inputs)"
    )


def _of_config(config: dict[str, Any], name: str, setting: Setting) -> Built:
    if "_class_name" in config:
        return from_diffusion_config(config, name, setting)
    return (from_detector_config if config["model_type"] == DETECTOR else from_config)(config, name, setting)


__all__ = ["Built", "Setting", "build"]
