"""From what a person names (a preset, a config.json, ``module:function``) to a model and its inputs."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from optiacts.reporting.errors import ReportError
from optiacts.reporting.lora import set_train_mode
from optiacts.reporting.presets import PRESETS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("sdpa", "eager")
LONGEST_DEFAULT = 4096  # tokens, where the model allows more


@dataclass(frozen=True)
class Setting:
    """How the model is trained. ``seq`` None: as many tokens as the model allows, at most 4096."""

    batch: int = 1
    seq: int | None = None
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    train_mode: str = "full"
    loss: bool = True
    autocast: bool = False  # in bfloat16, with the weights in dtype
    overrides: Mapping[str, Any] = field(default_factory=dict)  # entries of the config to change

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ReportError(f"--batch must be at least 1; got {self.batch}")
        if self.seq is not None and self.seq < 1:
            raise ReportError(f"--seq must be at least 1; got {self.seq}")
        if self.dtype not in DTYPES:
            raise ReportError(f"--dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")


@dataclass(frozen=True)
class Built:
    """A model in training mode, its inputs, and the setting in words."""

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    setting: dict[str, str]


def build(name: str, setting: Setting) -> Built:
    """The model called ``name`` with inputs, on the current device: enter a FakeTensorMode to make it weightless."""
    if name in PRESETS:
        built = _from_config(dict(PRESETS[name]), name, setting)
    elif name.endswith(".json") or Path(name).is_file():
        built = _from_config(_read(Path(name)), name, setting)
    elif ":" in name:
        built = _from_function(name, setting)
    else:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ReportError(
            f"no model is called {name!r}: {hint}Give one of {', '.join(PRESETS)}, the path of a config.json, or "
            "module:function, where the function returns (model, inputs)"
        )
    try:
        set_train_mode(built.model, setting.train_mode)
    except ValueError as error:
        raise ReportError(str(error)) from error
    return built


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}; give the path of a config.json") from error
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}); give a model's config.json as published") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ReportError(f"{path} has no 'model_type'; give a Hugging Face model's config.json")
    return config


def _from_config(config: dict[str, Any], name: str, setting: Setting) -> Built:
    try:
        import transformers
        from transformers.initialization import no_init_weights
    except ImportError as error:
        raise ReportError("a preset or a config.json needs transformers: pip install transformers") from error
    unknown = [key for key in setting.overrides if key not in config and key not in _defaults(config["model_type"])]
    if unknown:
        raise ReportError(f"--set {unknown[0]}=...: {name} has no such entry; see its config.json")
    config |= setting.overrides
    kind = config.pop("model_type")
    config.pop("torch_dtype", None)
    config.pop("dtype", None)
    architecture = (config.get("architectures") or [""])[0]
    try:
        known = transformers.AutoConfig.for_model(kind, **config)
    except Exception as error:
        raise ReportError(
            f"{name}: transformers {transformers.__version__} does not accept this config ({_brief(error)}); "
            "compare it with the published config.json"
        ) from error
    if hasattr(known, "use_cache"):
        known.use_cache = False  # as in training
    auto = _auto_class(transformers, architecture if setting.loss else "")
    try:
        with no_init_weights():  # initial values have no size, and drawing some needs values that are not there
            model = auto.from_config(known, attn_implementation=setting.attention, dtype=DTYPES[setting.dtype])
        kwargs, words = _inputs(model, known, setting)
    except ReportError:
        raise
    except Exception as error:
        raise ReportError(
            f"{name}: the model cannot be built from its config ({_brief(error)}); check its sizes, or try "
            "--attention eager or --no-loss"
        ) from error
    model.train()
    words |= {
        "dtype": setting.dtype + " under bfloat16 autocast" * setting.autocast,
        "attention": setting.attention,
        "train mode": setting.train_mode,
    }
    words["model"] = f"{type(model).__name__}" + ("" if setting.loss else ", without a loss")
    words |= {key: str(value) for key, value in setting.overrides.items()}
    return Built(model, (), kwargs, words)


def _defaults(kind: str) -> dict[str, Any]:
    import transformers

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
        ids = torch.zeros(setting.batch, seq, dtype=torch.long)
        inputs = {"input_ids": ids} | ({"labels": ids} if labelled else {})
        return inputs, {"batch": f"{setting.batch} x {seq} tokens"}
    if model.main_input_name == "pixel_values":
        if setting.seq is not None:
            raise ReportError("--seq means nothing to a model of images; leave it out")
        side = config.image_size
        images = torch.zeros(setting.batch, config.num_channels, side, side, dtype=DTYPES[setting.dtype])
        inputs = {"pixel_values": images}
        if labelled:
            inputs["labels"] = torch.zeros(setting.batch, dtype=torch.long)
        return inputs, {"batch": f"{setting.batch} images of {side} x {side}"}
    raise ReportError(
        f"inputs called {model.main_input_name!r} are not known here; write a function that returns (model, inputs) "
        "and give it as module:function"
    )


def _takes_labels(model: Any) -> bool:
    return "labels" in inspect.signature(model.forward).parameters


def _from_function(name: str, setting: Setting) -> Built:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), attribute)
        accepted = inspect.signature(function).parameters
    except Exception as error:
        raise ReportError(
            f"{name}: cannot be imported ({_brief(error)}); give module:function, importable from {Path.cwd()}"
        ) from error
    offered = {"batch": setting.batch, "seq": setting.seq, "dtype": DTYPES[setting.dtype]}
    given = {key: value for key, value in offered.items() if key in accepted}
    try:
        result = function(**given)
    except Exception as error:
        raise ReportError(
            f"{name}: the function failed ({_brief(error)}); it is called with {given} on fake tensors"
        ) from error
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], torch.nn.Module)):
        raise ReportError(
            f"{name}: must return (model, inputs), a module and its inputs; got {type(result).__name__}"
        )
    model, inputs = result
    words = {key: str(value) for key, value in given.items() if value is not None}
    words |= {"autocast": "bfloat16"} if setting.autocast else {}
    words |= {"train mode": setting.train_mode}
    if "batch" in words:
        words["batch"] += " samples"
    if isinstance(inputs, Mapping):
        return Built(model, (), dict(inputs), words)
    return Built(model, inputs if isinstance(inputs, tuple) else (inputs,), {}, words)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
