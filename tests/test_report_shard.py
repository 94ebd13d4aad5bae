"""What one rank of a sharded model takes: against two real processes, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from report_calibration import language_model, observed
from report_ranks import Way, observed_in
from torch import nn

from optiacts.reporting import ReportError, report
from optiacts.reporting.analysis import peak_of
from optiacts.reporting.ranks import Ranks, ranks_of
from tests.processes import two_processes

SMALL = {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}
MADE = language_model("Llama", 64, 4, **SMALL)
WAYS = (Way(Ranks(fsdp=2)), Way(Ranks(tp=2)), Way(Ranks(fsdp=2), checkpoint=1))  # the table of the docs has more


def measured(rank: int, predicted: list[int]) -> None:
    """A real step of each sharding, in this process and its peer, beside what was predicted."""
    for way, said in zip(WAYS, predicted, strict=True):
        real = observed_in(way, MADE, lambda model, inputs: observed(model, inputs, None, "adamw", steps=4))
        if rank == 0:
            assert said == pytest.approx(real, rel=0.02), (way, said, real)


class Measured:
    """``measured`` with what was predicted: a process takes it along."""

    def __init__(self, predicted: list[int]) -> None:
        self.predicted = predicted

    def __call__(self, rank: int) -> None:
        measured(rank, self.predicted)


@pytest.mark.filterwarnings("ignore")
def test_a_rank_takes_what_a_real_one_takes() -> None:
    """To 2 %, of two ranks over gloo: by FSDP, by tensor parallelism, and by FSDP with checkpoints."""
    model, inputs = MADE()
    predicted = [peak_of(model, inputs, shard=way.ranks, checkpoint=way.checkpoint).bytes for way in WAYS]
    assert predicted[2] < 0.95 * predicted[0]
    two_processes(Measured(predicted))
    assert not dist.is_initialized()


def test_states_are_shared_and_activations_are_not() -> None:
    """By FSDP; eight ranks have an eighth of all that is as large as the parameters."""

    def of(**how: Any) -> Any:
        layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(2))
        return report(nn.Sequential(*layers), torch.zeros(16, 64), **how)

    alone, one = of(), of(shard="fsdp=8")
    assert one.states.parameters == alone.states.parameters / 8
    assert one.states.gradients == alone.states.gradients / 8
    assert one.states.optimizer == alone.states.optimizer / 8
    assert one.now.kinds["activation functions"] == alone.now.kinds["activation functions"]
    assert [stage.name for stage in one.stages] == [stage.name for stage in alone.stages]
    assert one.sites == alone.sites


def test_what_ranks_are_is_said_in_words() -> None:
    assert ranks_of("fsdp=8,tp=2") == Ranks(8, 2) and ranks_of("tp=2") == Ranks(1, 2)
    for wrong in ("fsdp", "fsdp=0", "fsdp=-1", "pp=2", "fsdp=2,fsdp=2", "", "fsdp=two", 8):
        with pytest.raises(ReportError, match="must be such as fsdp=8, tp=2"):
            ranks_of(wrong)  # type: ignore[arg-type]
    with pytest.raises(ReportError, match="at most 1024 ranks; got 'fsdp=1024,tp=8'"):
        ranks_of("fsdp=1024,tp=8")


def test_what_cannot_be_sharded_says_why() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.zeros(2, 4)
    with pytest.raises(ReportError, match="Sequential has no plan for tensor parallelism; leave tp out"):
        report(model, x, shard="tp=2")
    assert not dist.is_initialized()
    with pytest.raises(ReportError, match="without choices: name the change"):
        report(model, x, shard="fsdp=2", choices=True)
