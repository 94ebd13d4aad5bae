"""Stand-ins for trainers that ``make test`` does not install: as much of their documented protocol as we rest on.

Written after axolotl 0.19.0, LLaMA-Factory 0.9.5 (its v1) and torchtitan 0.3.0. Where the package itself is installed
the tests take that.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional


def provide(host: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Makes ``host`` importable; whether it is the real one. Our module for it is imported anew."""
    real = importlib.util.find_spec(host) is not None
    if not real:
        for name, members in _STAND_INS[host]().items():
            module = types.ModuleType(name)
            module.__path__ = []  # type: ignore[attr-defined]  # a package
            module.__dict__.update(members)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, f"optiacts.integrations.{host}", raising=False)
    return real


def _axolotl() -> dict[str, dict[str, Any]]:
    class BasePlugin:
        def get_input_args(self) -> str | None:
            return None

        def post_model_load(self, cfg: Any, model: Any) -> None: ...

    def load_plugin(plugin_name: str) -> Any:
        module_name, class_name = plugin_name.rsplit(".", 1)
        return getattr(importlib.import_module(module_name), class_name)()

    base = {"BasePlugin": BasePlugin, "load_plugin": load_plugin}
    return {"axolotl": {}, "axolotl.integrations": {}, "axolotl.integrations.base": base}


def _llamafactory() -> dict[str, dict[str, Any]]:
    class KernelPlugin:
        _registry: dict[str, dict[str, Callable[..., Any]]] = defaultdict(dict)

        def __init__(self, name: str) -> None:
            self.name = name

        def register(self, method_name: str = "__call__") -> Callable[[Any], Any]:
            def decorator(function: Any) -> Any:
                self._registry[self.name][method_name] = function
                return function

            return decorator

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self._registry[self.name]["__call__"](*args, **kwargs)

    path = "llamafactory.v1.plugins.model_plugins.kernels.interface".split(".")
    packages: dict[str, dict[str, Any]] = {".".join(path[:end]): {} for end in range(1, len(path))}
    return {**packages, ".".join(path): {"KernelPlugin": KernelPlugin}}


def _torchtitan() -> dict[str, dict[str, Any]]:
    class Module(nn.Module):
        @dataclasses.dataclass(kw_only=True)
        class Config:
            def build(self) -> Any:
                return self._owner(self)  # type: ignore[attr-defined]

        def __init_subclass__(cls) -> None:
            cls.Config._owner = cls  # type: ignore[attr-defined]

    class Linear(nn.Linear, Module):
        @dataclasses.dataclass(kw_only=True)
        class Config(Module.Config):
            in_features: int
            out_features: int
            bias: bool = False

        def __init__(self, config: Any) -> None:
            super().__init__(config.in_features, config.out_features, bias=config.bias)

    class FeedForward(Module):
        @dataclasses.dataclass(kw_only=True)
        class Config(Module.Config):
            w1: Linear.Config
            w2: Linear.Config
            w3: Linear.Config

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = config.w1.build(), config.w2.build(), config.w3.build()

        def forward(self, x: Tensor) -> Tensor:
            return self.w2(functional.silu(self.w1(x)) * self.w3(x))

    class RMSNorm(nn.RMSNorm, Module):
        @dataclasses.dataclass(kw_only=True)
        class Config(Module.Config):
            normalized_shape: int
            eps: float = 1e-5
            elementwise_affine: bool = True

        def __init__(self, config: Any) -> None:
            super().__init__(config.normalized_shape, config.eps, config.elementwise_affine)

    class SelectiveAC:
        @dataclasses.dataclass(kw_only=True)
        class Config:
            preserve_rng_state: bool = True

        def __init__(self, config: Any) -> None:
            self.config = config

        def get_save_ops(self) -> set[Any]:
            return {"theirs"}

    def derive(source: Any, target: Any, **deltas: Any) -> Any:
        names = {field.name for field in dataclasses.fields(target)}
        return target(**{name: getattr(source, name) for name in names if hasattr(source, name)}, **deltas)

    overrides: dict[str, Any] = {}

    def override(*, target: Any, exact: bool, description: str) -> Callable[[Any], Any]:
        def decorator(function: Any) -> Any:
            overrides[f"{function.__module__}.{function.__name__}"] = target
            return function

        return decorator

    layers = "torchtitan.models.common"
    return {
        "torchtitan": {},
        "torchtitan.config": {"derive": derive, "override": override, "overrides": overrides},
        "torchtitan.distributed": {},
        "torchtitan.distributed.activation_checkpoint": {"SelectiveAC": SelectiveAC},
        "torchtitan.models": {},
        layers: {},
        f"{layers}.feed_forward": {"FeedForward": FeedForward},
        f"{layers}.linear": {"Linear": Linear},
        f"{layers}.nn_modules": {"RMSNorm": RMSNorm},
    }


_STAND_INS = {"axolotl": _axolotl, "llamafactory": _llamafactory, "torchtitan": _torchtitan}
