import os

import pytest
import torch
from hypothesis import settings

# Two test processes share the machine, and so do the processes that they start. Tests of threading ask for more.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


# The same examples on every run; `--hypothesis-profile default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole-zoo", action="store_true", help="test every model of tools/model_zoo.py, not a part")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
