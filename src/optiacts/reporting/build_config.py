"""A Hugging Face model from its config.json, and inputs for it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch

from optiacts.reporting.attention import as_transformers_says
from optiacts.reporting.errors import ReportError
from optiacts.reporting.setting import DTYPES, LONGEST_DEFAULT, Built, Setting, brief

_DTYPES = ("torch_dtype", "dtype")
_SAID_OTHERWISE = {
    **dict.fromkeys(_DTYPES, "give --dtype"),
    "model_type": "give a config.json of that type",
    "architectures": "give a config.json with them, or --no-loss for the bare model",
}
"""Entries of a config that are no sizes, and what to do in place of --set."""


def read_config(path: Path) -> dict[str, Any]:
    """What a config.json says."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}; give the path of a config.json") from error
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}); give a model's config.json as published") from error
    if not isinstance(config, dict) or not {"model_type", "_class_name"} & config.keys():
        raise ReportError(f"{path} has no 'model_type'; give a Hugging Face model's config.json")
    for entry in ("model_type", "_class_name"):
        if not isinstance(config.get(entry, ""), str):
            raise ReportError(f"{path}: {entry!r} must be a name; got {config[entry]!r}")
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ReportError(f"{path}: 'architectures' must be a list of names; got {named!r}")
    return config


def cached_config(name: str) -> dict[str, Any]:
    """The config of the Hub's model ``name``, from this machine's cache. Nothing is downloaded."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise ReportError("a model of the Hub needs transformers: pip install transformers") from error
    found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        raise ReportError(
            f"the config.json of {name} is not in this machine's cache, and a report downloads nothing; run "
            f"`hf download {name} config.json` once, or give the path of its config.json"
        )
    return read_config(Path(found))


def from_config(config: dict[str, Any], name: str, setting: Setting) -> Built:
    """The model of ``config`` with inputs, as ``setting`` says."""
    try:
        import transformers
        from transformers.initialization import no_init_weights
    except ImportError as error:
        raise ReportError("a preset or a config.json needs transformers: pip install transformers") from error
    if config.get("quantization_config"):
        raise ReportError(
            f"{name} is quantised, and its weights would be counted as if they were not; give the config.json of the "
            "model that it was made from, with --train-mode qlora"
        )
    known = _config(transformers, config, name, setting)
    if hasattr(known, "use_cache"):
        known.use_cache = False  # as in training
    architecture = (config.get("architectures") or [""])[0]
    auto = _auto_class(transformers, architecture if setting.loss else "")
    attention = as_transformers_says("flash" if setting.tokens else setting.attention)
    try:
        with no_init_weights():  # initial values have no size, and drawing some needs values that are not there
            model = auto.from_config(known, attn_implementation=attention, dtype=DTYPES[setting.weights])
        kwargs, words = _inputs(model, known, setting)
    except ReportError:
        raise
    except Exception as error:
        said = "".join(f" --set {key}={value}" for key, value in setting.overrides.items())
        raise ReportError(
            f"{name}{said}: the model cannot be built from its config ({brief(error)}); check its sizes, or try "
            "--attention eager or --no-loss"
        ) from error
    model.train()
    words |= {
        "dtype": setting.weights + " under bfloat16 autocast" * setting.autocast,
        "attention": "flash" if setting.tokens else setting.attention or str(model.config._attn_implementation),
        "train mode": setting.training,
    }
    words["model"] = f"{type(model).__name__}" + ("" if setting.loss else ", without a loss")
    words |= {key: str(value) for key, value in setting.overrides.items()}
    return Built(model, (), kwargs, words)


def _config(transformers: Any, config: dict[str, Any], name: str, setting: Setting) -> Any:
    kind = config["model_type"]
    entries = _defaults(transformers, kind) | config
    for key, value in setting.overrides.items():
        if key in _SAID_OTHERWISE:
            raise ReportError(f"--set {key}={value}: is not changed so; {_SAID_OTHERWISE[key]}")
        if key not in entries:
            raise ReportError(f"--set {key}=...: {name} has no such entry; see its config.json")
        check_kind(key, value, entries[key])
    left_out = ("model_type", *_DTYPES)
    size = {} if setting.image_size is None else {"image_size": setting.image_size}
    if size and "image_size" not in entries:
        raise ReportError(f"--image-size means nothing to {name}, whose config has no image_size; leave it out")
    changed = config | dict(setting.overrides) | size
    given = {key: value for key, value in changed.items() if key not in left_out}
    try:
        return transformers.AutoConfig.for_model(kind, **given)
    except Exception as error:
        raise ReportError(
            f"{name}: transformers {transformers.__version__} does not accept this config ({brief(error)}); "
            "compare it with the published config.json"
        ) from error


def check_kind(key: str, value: Any, usual: Any) -> None:
    """A text, or a negative number, is no size."""
    if isinstance(usual, bool) or not isinstance(usual, (int, float)):
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ReportError(f"--set {key}={value}: must be a number, where {usual} is usual; got {value!r}")
    if isinstance(usual, int) and (value != int(value) or (usual > 0 and value < 0)):
        raise ReportError(f"--set {key}={value}: must be a whole number from 0 on, where {usual} is usual")


def _defaults(transformers: Any, kind: str) -> dict[str, Any]:
    try:
        return transformers.AutoConfig.for_model(kind).to_dict()
    except ValueError:
        return {}


def _auto_class(transformers: Any, architecture: str) -> Any:
    """The auto class whose models have the head and the loss of ``architecture``; the bare model by default."""
    tasks = {
        "ForCausalLM": transformers.AutoModelForCausalLM,
        "LMHeadModel": transformers.AutoModelForCausalLM,
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForPreTraining": transformers.AutoModelForMaskedLM,
        "ForConditionalGeneration": transformers.AutoModelForSeq2SeqLM,
        "ForImageClassification": transformers.AutoModelForImageClassification,
    }
    for ending, auto in tasks.items():
        if architecture.endswith(ending):
            return auto
    return transformers.AutoModel


def _inputs(model: Any, config: Any, setting: Setting) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    labelled = type(model).__name__ != type(model).base_model_prefix and setting.loss and _takes_labels(model)
    if model.main_input_name == "input_ids":
        longest = getattr(config, "max_position_embeddings", None) or LONGEST_DEFAULT
        seq = setting.seq or min(longest, LONGEST_DEFAULT)
        if seq > longest:
            raise ReportError(
                f"--seq {seq} is more than the {longest} positions of this model; give at most {longest}"
            )
        if setting.tokens is not None:
            return _packed(model, setting.tokens, min(seq, setting.tokens), labelled)
        ids = torch.zeros(setting.samples, seq, dtype=torch.long)
        inputs = {"input_ids": ids} | ({"labels": ids.clone()} if labelled else {})
        return inputs, {"batch": f"{setting.samples} x {seq} tokens"}
    if model.main_input_name == "pixel_values":
        if setting.tokens is not None:
            raise ReportError("--tokens means nothing to a model of images; leave it out")
        if setting.seq is not None:
            raise ReportError("--seq means nothing to a model of images; leave it out")
        side = config.image_size
        images = torch.zeros(setting.samples, config.num_channels, side, side, dtype=DTYPES[setting.weights])
        inputs = {"pixel_values": images}
        if labelled:
            inputs["labels"] = torch.zeros(setting.samples, dtype=torch.long)
        return inputs, {"batch": f"{setting.samples} images of {side} x {side}"}
    raise ReportError(
        f"inputs called {model.main_input_name!r} are not known here; write a function that returns (model, inputs) "
        "and give it as module:function"
    )


def _packed(model: Any, tokens: int, seq: int, labelled: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One row of sequences, whose positions say where each begins."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ReportError(f"--tokens: {type(model).__name__} takes no position_ids, which tell where one begins")
    ids = torch.zeros(1, tokens, dtype=torch.long)
    inputs = {"input_ids": ids, "position_ids": torch.arange(tokens).remainder(seq)[None]}
    words = {"batch": f"{tokens} tokens, packed sequences of {seq}"}
    return inputs | ({"labels": ids.clone()} if labelled else {}), words


def _takes_labels(model: Any) -> bool:
    return "labels" in inspect.signature(model.forward).parameters
