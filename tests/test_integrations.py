"""Trainers: the same losses as without OptiActs, fewer bytes held, and conversion before anything wraps the model."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import optiacts
from tests import fresh
from tests.hosts import provide

EXAMPLES = Path(__file__).parents[1] / "examples" / "trainers"
# a tiny Llama, 4 x 32 tokens, as PyTorch holds it and converted
HELD = {"PyTorch": 780_804, "OptiActs": 443_028}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",  # Lightning on a newer PyTorch than it knows
    "ignore:.*does not have many workers.*",
    "ignore:.*GPU available but not used.*",
    "ignore:The number of training batches:UserWarning",
)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an example by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def check(found: dict[str, tuple[list[float], int]]) -> None:
    """The example's losses agree, from the first one on, and the bytes are those that are known."""
    reference, _ = found["PyTorch"]
    assert len(reference) == 4 and reference[-1] < reference[0] - 0.3
    for name, (losses, held) in found.items():
        assert losses[0] == reference[0]
        assert losses == pytest.approx(reference, rel=1e-5)
        assert held == HELD["PyTorch" if name == "PyTorch" else "OptiActs"], name


def test_trainer(example: Any) -> None:
    check(example("hf_trainer").main())


def test_lightning(example: Any) -> None:
    check(example("lightning_fit").main())


def test_accelerate(example: Any) -> None:
    check(example("accelerate_loop").main())


def test_trl(example: Any) -> None:
    """``make test`` does not install TRL, whose data sets bring 100 MB along."""
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    found = example("trl_sft").main()
    check({name: found[name] for name in ("PyTorch", "OptiActs")})
    (losses, held), (ours, held_by_ours) = found["PyTorch, LoRA"], found["OptiActs, LoRA"]
    assert ours == pytest.approx(losses, rel=1e-5)
    assert held_by_ours < 0.7 * held


class TestWhenTrainersWrap:
    """Conversion must come before FSDP, DDP and ``torch.compile`` wrap the model."""

    def trainer(self, example: Any, folder: Path, **arguments: Any) -> Any:
        from transformers import Trainer, TrainingArguments

        settings = TrainingArguments(
            str(folder), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
        )
        tiny = example("tiny")
        if "model_init" not in arguments:
            arguments["model"] = tiny.new_model()
        return Trainer(args=settings, train_dataset=tiny.text(), **arguments)

    def test_a_trainer_wraps_between_its_callbacks(
        self, example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import TrainerCallback

        from optiacts.integrations.hf_trainer import ConvertCallback

        events: list[str] = []

        class Noting(TrainerCallback):  # type: ignore[misc]
            def on_init_end(self, *args: Any, **others: Any) -> None:
                events.append("on_init_end")

            def on_train_begin(self, *args: Any, **others: Any) -> None:
                events.append("on_train_begin")

        callback = ConvertCallback(norms=False, dropout=False)
        trainer = self.trainer(example, tmp_path, callbacks=[callback, Noting()])
        assert callback.report is not None and len(callback.report.converted) == 2 + 2
        prepare = trainer.accelerator.prepare

        def noting(*args: Any, **others: Any) -> Any:
            events.append("wrap")
            return prepare(*args, **others)

        monkeypatch.setattr(trainer.accelerator, "prepare", noting)
        trainer.train()
        assert events[0] == "on_init_end" and events[-1] == "on_train_begin" and "wrap" in events[1:-1]

    def test_a_callback_that_comes_too_late_is_an_error(self, example: Any, tmp_path: Path) -> None:
        from optiacts.integrations.hf_trainer import ConvertCallback

        trainer = self.trainer(example, tmp_path)
        trainer.add_callback(ConvertCallback())
        with pytest.raises(RuntimeError, match="has not converted the model that is trained"):
            trainer.train()

    def test_a_model_made_anew_is_an_error(self, example: Any, tmp_path: Path) -> None:
        from optiacts.integrations.hf_trainer import ConvertCallback

        make = example("tiny").new_model
        trainer = self.trainer(example, tmp_path, model_init=make, callbacks=[ConvertCallback()])
        with pytest.raises(RuntimeError, match=r"with `model_init`, call optiacts.convert at its end"):
            trainer.train()

    def test_lightning_wraps_after_setup(self, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from pytorch_lightning.strategies import SingleDeviceStrategy

        module = example("lightning_fit")
        converted: list[bool] = []
        setup = SingleDeviceStrategy.setup

        def looking(self: Any, trainer: Any) -> None:
            converted.append(type(self.model.model.model.norm).__module__ != "optiacts")
            assert "OptiActs" in repr(self.model)
            setup(self, trainer)

        monkeypatch.setattr(SingleDeviceStrategy, "setup", looking)
        module.train([module.Convert()])
        assert converted == [True]

    def test_layers_made_in_configure_model(self, example: Any) -> None:
        module = example("lightning_fit")

        class Late(module.Module):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                module.LightningModule.__init__(self)

            def configure_model(self) -> None:
                self.model = nn.Linear(1, 1)

        with pytest.raises(RuntimeError, match=r"Late makes its layers in configure_model.*at the end of"):
            module.Convert().setup(None, Late(), "fit")
        module.Convert().setup(None, Late(), "test")  # no training, nothing converted


@pytest.fixture(scope="module")
def found() -> Any:
    """What one process found: tests/kernels_process.py."""
    code = f"from tests import kernels_process; kernels_process.main({str(EXAMPLES)!r})"
    return ast.literal_eval(fresh.run(code, cwd=EXAMPLES.parents[1], check=True).stdout.splitlines()[-1])


class TestUseKernels:
    """Against the real ``kernels``; transformers asks for a version that may be newer than the one installed here."""

    def test_the_example(self, found: Any) -> None:
        check(found["example"])

    def test_layers_compute_what_they_did(self, found: Any) -> None:
        layers = found["layers"]
        assert len(layers) == 9 * 2 + 1
        for name, (equal, before, after) in layers.items():
            assert equal, name
            assert after == before if "in Python" in name[0] else after < before, (name, before, after)

    def test_the_mapping_survives_that_of_transformers(self, found: Any) -> None:
        mapping, training, inference = found["mapping"], 2, 4
        assert len(mapping) == 3 * 3 * 3 * 3 * 3
        for (when, capability, name, device, mode), chosen in mapping.items():
            place = when, capability, name, device, mode
            if mode == inference:
                known = mapping[("before", *place[1:])]  # where there is none kernels takes ours: PyTorch's op then
                assert chosen == known or (chosen == "_Layer" and not known), place
            elif mode == training:
                assert (chosen == "_Layer") is (when != "before"), place
            else:  # compiled: norms are transformers' own, as it maps them
                assert (chosen == "_Layer") is (when != "before" and name != "RMSNorm"), place
        assert mapping["before", 80, "SiLU", "cuda", inference] == "LayerRepository"
        assert mapping["before", 80, "RMSNorm", "cuda", training] == "LayerRepository"

    def test_classes_of_mlps_are_checked(self, found: Any) -> None:
        assert found["classes_of_mlps"] == "mlps must be classes of modules; got 'LlamaMLP'"


class TestAxolotl:
    def test_the_plugin_of_the_example(self, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        provide("axolotl", monkeypatch)
        base = importlib.import_module("axolotl.integrations.base")
        settings = yaml.safe_load((EXAMPLES / "axolotl.yaml").read_text())
        plugin = base.load_plugin(settings["plugins"][0])
        assert isinstance(plugin, base.BasePlugin)
        tiny, model = example("tiny"), example("tiny").new_model()
        plugin.post_model_load(SimpleNamespace(**settings), model)
        assert not any(entry.path.endswith(".norm") for entry in plugin.report.converted)
        loss, reference = (one(**tiny.batch()).loss for one in (model, tiny.new_model()))
        assert torch.equal(loss, reference)
        held = optiacts.saved_memory(model, **tiny.batch()).bytes
        last_norm = tiny.new_model()
        optiacts.convert(last_norm, exclude="*.norm")
        assert HELD["OptiActs"] < held == optiacts.saved_memory(last_norm, **tiny.batch()).bytes < HELD["PyTorch"]

    def test_its_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        provide("axolotl", monkeypatch)
        from optiacts.integrations import axolotl

        module, _, name = axolotl.OptiActsPlugin().get_input_args().rpartition(".")
        arguments = getattr(importlib.import_module(module), name)
        assert arguments().model_dump()["optiacts_gated"] is True
        with pytest.raises(ValueError, match="optiacts_exclude"):
            arguments(optiacts_exclude=3)
        settings = yaml.safe_load((EXAMPLES / "axolotl.yaml").read_text())
        assert {name for name in settings if name.startswith("optiacts")} <= set(arguments.model_fields)

    def test_a_conflict_is_told(
        self, example: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        provide("axolotl", monkeypatch)
        from optiacts.integrations import axolotl

        axolotl.OptiActsPlugin().post_model_load(SimpleNamespace(liger_glu_activation=True), nn.Linear(2, 2))
        assert "liger_glu_activation replaces MLPs" in caplog.text


class TestLlamaFactory:
    @pytest.mark.parametrize("include", [None, "auto", True, "gated,norms,chains,dropout"])
    def test_the_kernel_of_the_example(self, example: Any, monkeypatch: pytest.MonkeyPatch, include: Any) -> None:
        provide("llamafactory", monkeypatch)
        path = "llamafactory.v1.plugins.model_plugins.kernels.interface"
        importlib.import_module("optiacts.integrations.llamafactory")
        settings = yaml.safe_load((EXAMPLES / "llamafactory.yaml").read_text())
        kernel = importlib.import_module(path).KernelPlugin(settings["kernel_config"]["name"])
        tiny, model = example("tiny"), example("tiny").new_model()
        assert kernel(model=model, include_kernels=include) is model
        assert torch.equal(model(**tiny.batch()).loss, tiny.new_model()(**tiny.batch()).loss)
        assert optiacts.saved_memory(model, **tiny.batch()).bytes == HELD["OptiActs"]

    def test_a_part(self, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        provide("llamafactory", monkeypatch)
        from optiacts.integrations.llamafactory import convert

        tiny, model = example("tiny"), example("tiny").new_model()
        convert(model, include_kernels="gated")
        assert HELD["OptiActs"] < optiacts.saved_memory(model, **tiny.batch()).bytes < HELD["PyTorch"]
        with pytest.raises(ValueError, match=r"include_kernels must name some of gated, .*; got 'rope,gated'"):
            convert(model, include_kernels="rope,gated")


class TestTorchtitan:
    def test_the_example(self, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        provide("torchtitan", monkeypatch)
        found = example("torchtitan_overrides").main()
        (losses, held), (ours, held_by_ours) = found["PyTorch"], found["OptiActs"]
        assert losses[0] == ours[0] and ours == pytest.approx(losses, rel=1e-5)
        hidden, width = 64 * 96 * 4, 64 * 32 * 4
        norms = held - held_by_ours - (2 * hidden - 2 * hidden // 32 - 8)  # two tensors less, two bits and edges more
        assert norms == pytest.approx(width, rel=0.1)  # and the norm's input, which is the block's

    def test_what_selective_checkpointing_saves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        provide("torchtitan", monkeypatch)
        from optiacts.integrations import torchtitan

        config = torchtitan.selective_checkpointing(torchtitan.SelectiveAC.Config())
        saved = torchtitan.OptiActsSelectiveAC(config).get_save_ops()
        assert saved == torchtitan.SelectiveAC(config).get_save_ops() | optiacts.checkpoint_ops()
        assert {op.name() for op in optiacts.checkpoint_ops()} == {
            "optiacts::activation_forward",
            "optiacts::gated_forward",
            "optiacts::chain_forward",
        }

    def test_every_override_is_registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = provide("torchtitan", monkeypatch)
        ours = importlib.import_module("optiacts.integrations.torchtitan")
        if real:
            registry = importlib.import_module("torchtitan.config.override")._REGISTRY
            registered = {name: override.target_cls for name, override in registry.items()}
        else:
            registered = importlib.import_module("torchtitan.config").overrides
        for function, target in (("feed_forward", ours.FeedForward), ("rms_norm", ours.RMSNorm)):
            assert registered[f"optiacts.integrations.torchtitan.{function}"] is target.Config
