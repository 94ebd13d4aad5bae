import pytest
import torch

torch.set_num_threads(1)  # two test processes share the machine; tests of threading ask for more


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
