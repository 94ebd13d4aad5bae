import gc
import os
from collections.abc import Iterator

# OpenMP's threads wait without spinning: of several on few cores, those that spin take the time of those that work.
os.environ["OMP_WAIT_POLICY"] = "passive"  # read where torch is loaded
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of further processes, each with its own imports

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Not where tests are handed out to others: what is imported here takes seconds."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    gc.disable()  # until all is imported: nothing of it is garbage
    import torch
    from hypothesis import settings

    # Two test processes share the machine, and so do the processes that they start. Tests of threading ask for more.
    torch.set_num_threads(1)
    # The same examples on every run; `--hypothesis-profile default` looks for new ones.
    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole-zoo", action="store_true", help="test all models, and cases in all worlds, not a part")


# A file is one worker's. The long ones come first, so that the last ones to begin are short.
LONGEST_FIRST = (
    "test_cases.py",
    "test_report.py",
    "test_report_command.py",
    "test_convert_models.py",
    "test_gated_autograd.py",
    "test_norms_compiled.py",
    "test_native.py",
    "test_dropout.py",
    "test_command.py",
    "test_training.py",
    "test_integrations.py",
    "test_fitting.py",
    "test_chains_compiled.py",
    "test_registry.py",
    "test_gradients.py",
    "test_gated_accuracy.py",
    "test_transforms.py",
    "test_activations.py",
    "test_distributed.py",
    "test_native_norm.py",
    "test_chains.py",
    "test_first_use.py",
    "test_convert_norms.py",
    "test_generated.py",
    "test_compiled.py",
    "test_everywhere.py",
    "test_report_peak.py",
    "test_gated_corners.py",
    "test_opinfo.py",
    "test_demo.py",
    "test_norm_channels.py",
    "test_frontier.py",
    "test_accuracy_float32.py",
    "test_norm_accuracy.py",
    "test_define.py",
    "test_package.py",
    "test_gpu_codegen.py",
    "test_report_choices.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """What is there before a file stays there: no garbage is looked for among it, which took seconds each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries that look for leaks at the end find none


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

    from optiacts import replay

    torch.manual_seed(0)
    replay.record_after(1)
    replay.forget()  # what a test puts in the place of something else must be called


@pytest.fixture(params=["looks in every forward", "remembers"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where norms' weights lie: on a CPU, or as if they lay where looking at them makes the host wait."""
    import optiacts
    from optiacts.ops import norm_channels, norm_plain

    optiacts.norm_weights_changed()
    # graphs of another test that are still there would have errors told at an optimizer's step already
    monkeypatch.setattr(norm_channels, "_known", {})
    if request.param == "remembers":
        for module in (norm_plain, norm_channels):
            monkeypatch.setattr(module, "waits", lambda device: True)
    yield request.param
    optiacts.norm_weights_changed()


@pytest.fixture
def two_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
