"""A model of diffusers from its config.json, and inputs for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optiacts.reporting.build_function import fake_parameters_convert
from optiacts.reporting.errors import ReportError
from optiacts.reporting.setting import DTYPES, Built, Setting, brief

LATENT = 8  # pixels, each way, of a latent of Stable Diffusion's autoencoder
_TOKENS = 77  # of CLIP's text


def from_diffusion_config(config: dict[str, Any], name: str, setting: Setting) -> Built:
    """The model of ``config``, which has the ``_class_name`` of a class of diffusers, as ``setting`` says."""
    try:
        import diffusers
    except ImportError as error:
        raise ReportError(f"{name} needs diffusers: pip install diffusers") from error
    _check(name, setting)
    kind = config["_class_name"]
    if kind not in _INPUTS:
        raise ReportError(
            f"{name}: the inputs of diffusers' {kind} are not known here, but those of {', '.join(_INPUTS)}; write a "
            "function that returns (model, inputs) and give it as module:function"
        )
    made = getattr(diffusers, kind)
    known = inspect.signature(made).parameters
    for key in setting.overrides:
        if key not in known:
            raise ReportError(f"--set {key}=...: {name} has no such entry; see its config.json")
    entries = {key: value for key, value in config.items() if key in known} | dict(setting.overrides)
    dtype = DTYPES[setting.weights]
    try:
        model = made(**entries).train()
        with fake_parameters_convert():
            model.to(dtype)
    except Exception as error:
        raise ReportError(f"{name}: the model cannot be built from its config ({brief(error)})") from error
    kwargs, batch = _INPUTS[kind](model.config, setting, dtype)
    words = {"batch": batch, "dtype": setting.weights + " under bfloat16 autocast" * setting.autocast}
    words |= {"train mode": setting.training, "model": kind}
    words |= {key: str(value) for key, value in setting.overrides.items()}
    return Built(model, (), kwargs, words)


def _check(name: str, setting: Setting) -> None:
    for option, value in (("seq", setting.seq), ("tokens", setting.tokens)):
        if value is not None:
            raise ReportError(f"--{option} means nothing to a model of images; leave it out")
    if setting.attention not in (None, "sdpa"):
        raise ReportError(f"--attention {setting.attention}: {name} calls scaled_dot_product_attention; leave it out")


def _side(config: Any, setting: Setting) -> int:
    """The latents in a row."""
    if setting.image_size is None:
        return int(config.sample_size)
    if setting.image_size % LATENT:
        raise ReportError(f"--image-size must be a multiple of {LATENT}; got {setting.image_size}")
    return setting.image_size // LATENT


def _latents(config: Any, setting: Setting, dtype: torch.dtype) -> tuple[Tensor, Tensor, str]:
    """Latents, a time for each, and both in words."""
    side, samples = _side(config, setting), setting.samples
    words = f"{samples} images of {side * LATENT} x {side * LATENT}, latents of {side} x {side}"
    times = torch.zeros(samples, dtype=torch.long)
    return torch.zeros(samples, config.in_channels, side, side, dtype=dtype), times, words


def _unet(config: Any, setting: Setting, dtype: torch.dtype) -> tuple[dict[str, Tensor], str]:
    latents, times, words = _latents(config, setting, dtype)
    text = torch.zeros(setting.samples, _TOKENS, config.cross_attention_dim, dtype=dtype)
    return {"sample": latents, "timestep": times, "encoder_hidden_states": text}, words


def _dit(config: Any, setting: Setting, dtype: torch.dtype) -> tuple[dict[str, Tensor], str]:
    latents, times, words = _latents(config, setting, dtype)
    return {"hidden_states": latents, "timestep": times, "class_labels": torch.zeros_like(times)}, words


def _autoencoder(config: Any, setting: Setting, dtype: torch.dtype) -> tuple[dict[str, Tensor], str]:
    side = setting.image_size or int(config.sample_size)
    images = torch.zeros(setting.samples, config.in_channels, side, side, dtype=dtype)
    return {"sample": images}, f"{setting.samples} images of {side} x {side}"


_INPUTS: dict[str, Callable[[Any, Setting, torch.dtype], tuple[dict[str, Tensor], str]]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _autoencoder,
    "DiTTransformer2DModel": _dit,
}
