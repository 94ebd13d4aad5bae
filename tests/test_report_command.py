"""``optiacts report`` on the command line: what it prints, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optiacts.reporting.kinds import ACTIVATIONS, LINEARS
from optiacts.reporting.plot import COLOURS
from tests.commands import Result, optiacts

MODELS = """
import torch

def mlp(batch, seq):
    assert type(torch.empty(1)).__name__ == "FakeTensor"
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    return model, torch.empty(batch, 64)

def wrong_input():
    return torch.nn.Linear(3, 4), torch.empty(2, 5)

def not_a_model():
    return 3

def raises():
    raise KeyError("weights")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "report_models.py").write_text(MODELS)
    (tmp_path / "broken.json").write_text('{"model_type": "bert"')
    (tmp_path / "untyped.json").write_text('{"hidden_size": 3}')
    (tmp_path / "unknown.json").write_text('{"model_type": "no-such-model"}')
    (tmp_path / "misfit.json").write_text('{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 7}')
    tiny = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    tiny |= {"vocab_size": 50, "num_hidden_layers": 2, "architectures": ["BertForMaskedLM"]}
    (tmp_path / "tiny.json").write_text(json.dumps(tiny))
    return tmp_path


def run(*arguments: str) -> Result:
    return optiacts("report", *arguments)


BAD = [
    (("bert-bas",), "no model is called 'bert-bas': did you mean bert-base?"),
    (("nonsense.json",), "nonsense.json cannot be read"),
    (("broken.json",), "broken.json is not JSON"),
    (("untyped.json",), "has no 'model_type'"),
    (("unknown.json",), "does not accept this config"),
    (("misfit.json",), "the model cannot be built from its config"),
    (("tiny.json", "--batch", "0"), "--batch must be at least 1; got 0"),
    (("tiny.json", "--batch", "-3"), "--batch must be at least 1; got -3"),
    (("tiny.json", "--seq", "0"), "--seq must be at least 1; got 0"),
    (("tiny.json", "--seq", "513"), "--seq 513 is more than the 512 positions of this model"),
    (("vit-base", "--seq", "9"), "--seq means nothing to a model of images"),
    (("tiny.json", "--set", "hiden_size=3"), "--set hiden_size=...: tiny.json has no such entry"),
    (("tiny.json", "--set", "hidden_size"), "is not KEY=VALUE"),
    (("tiny.json", "--gpu-memory", "lots"), "'lots' is not a size; give one such as 24GiB"),
    (("tiny.json", "--gpu-memory", "0GiB"), "'0GiB' is not a size"),
    (("tiny.json", "--plot", "there/is/no/such.png"), "give a writable path ending in"),
    (("gemma-2-9b",), "--attention eager"),
    (("report_models:wrong_input",), "the forward failed: RuntimeError"),
    (("report_models:not_a_model",), "must return (model, inputs)"),
    (("report_models:raises",), "the function failed (KeyError: 'weights')"),
    (("report_models:absent",), "cannot be imported"),
    (("no_module:absent",), "cannot be imported"),
    (("tiny.json", "--measure"), "needs a CUDA GPU; there is none here"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_answered_with_what_to_do(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    if "--measure" in arguments:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_function_gets_batch_and_runs_on_fake_tensors(folder: Path) -> None:
    result = run("report_models:mlp", "--batch", "8", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    now, after = made["stages"][:2]
    assert now["bytes"] == 8 * 4 * (64 + 256 + 256)
    assert now["kinds"]["activation functions"] == 8 * 4 * 256
    assert after["bytes"] == 8 * 4 * (64 + 256) + 8 * 256 // 8
    (site,) = made["sites"]
    assert site["gain"] == now["bytes"] - after["bytes"] and site["pays"]


def test_autocast_keeps_the_weights_in_float32(folder: Path) -> None:
    result = run("tiny.json", "--seq", "32", "--autocast", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["setting"]["dtype"] == "float32 under bfloat16 autocast"
    *_, norms, shared = made["stages"]
    assert (norms["name"], shared["name"]) == ("norms converted", "casts shared")
    hidden, rows, parameters = 2 * 32 * 32, 32, 2 * 4 * 32
    # Four norms go to a Linear: the input in float32 and a mean for each row go, remainder bits and parameters come.
    norm = 2 * hidden + 4 * rows - hidden // 8 - parameters
    # The copies for q, k and v of both blocks become one each.
    assert norms["bytes"] - shared["bytes"] == 4 * norm + 2 * 2 * hidden


def test_json_of_several_models_and_the_largest_batch(folder: Path) -> None:
    result = run("tiny.json", "vit-base", "--json", "--gpu-memory", "3GB", "--optimizer", "sgd")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    assert first["name"] == "tiny.json" and second["name"] == "vit-base"
    for made in (first, second):
        assert made["states"]["optimizer"] == 0 and made["gpu_memory"] == 3 * 10**9
        now, after = made["stages"][:2]
        assert after["largest_batch"] > now["largest_batch"] > 1


def test_the_table_says_the_whole_card(folder: Path) -> None:
    result = run("tiny.json", "--gpu-memory", "24GiB")
    assert result.exit_code == 0, result.output
    for words in ("linears' inputs", "optimizer state", "largest batch in", "its output is kept by"):
        assert words in " ".join(result.output.split()).replace("│ ", "").replace("│", ""), words


def test_the_picture_is_drawn(folder: Path) -> None:
    result = run("tiny.json", "report_models:mlp", "--plot", "bars.png")
    assert result.exit_code == 0, result.output
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    pixels = imread("bars.png")[..., :3]
    for kind in (ACTIVATIONS, LINEARS):
        close = (pixels - to_rgb(COLOURS[kind])).__abs__().max(-1) < 0.02
        assert close.sum() > 0.001 * close.size, kind
