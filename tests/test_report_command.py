"""``optiacts report`` on the command line: what it prints, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts import report, saved_memory
from optiacts.reporting.build import Setting, build
from optiacts.reporting.kinds import ACTIVATIONS, LINEARS
from optiacts.reporting.plot import COLOURS
from tests.commands import Result, optiacts

MODELS = """
import torch

def mlp(batch, width=64):
    assert type(torch.empty(1)).__name__ == "FakeTensor"
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    return model, torch.empty(batch, 64)

def own_defaults(batch=5, seq=7, dtype=torch.float32):
    first, last = torch.nn.Conv1d(3, 4, 1), torch.nn.Conv1d(4, 3, 1)
    model = torch.nn.Sequential(first, torch.nn.BatchNorm1d(4), torch.nn.GELU(), last)
    return model.to(dtype), torch.empty(batch, 3, seq, dtype=dtype)

def needs_seq(seq):
    return None

def wrong_input():
    return torch.nn.Linear(3, 4), torch.empty(2, 5)

def not_a_model():
    return 3

def three():
    return torch.nn.Linear(3, 4), 3, 4

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
    (tmp_path / "other.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "folder").mkdir()
    (tmp_path / "quantised.json").write_text('{"model_type": "bert", "quantization_config": {"bits": 4}}')
    tiny = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    tiny |= {"vocab_size": 50, "num_hidden_layers": 2, "architectures": ["BertForMaskedLM"]}
    (tmp_path / "tiny.json").write_text(json.dumps(tiny))
    (tmp_path / "unnamed.json").write_text(json.dumps(tiny | {"architectures": "BertForMaskedLM"}))
    (tmp_path / "number.json").write_text('{"model_type": 3}')
    decoder = tiny | {"model_type": "llama", "num_key_value_heads": 2, "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "decoder.json").write_text(json.dumps(decoder))
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
    (("tiny.json", "--batch", "0"), "argument --batch: must be at least 1; got 0"),
    (("tiny.json", "--batch", "-3"), "argument --batch: must be at least 1; got -3"),
    (("tiny.json", "--seq", "0"), "argument --seq: must be at least 1; got 0"),
    (("tiny.json", "--seq", "9" * 20), "argument --seq: must be at most 2147483647; got 99999999999999999999"),
    (("tiny.json", "--seq", "513"), "--seq 513 is more than the 512 positions of this model"),
    (("vit-base", "--seq", "9"), "--seq means nothing to a model of images"),
    (("tiny.json", "--set", "hiden_size=3"), "--set hiden_size=...: tiny.json has no such entry"),
    (("tiny.json", "--set", "hidden_size"), "is not KEY=VALUE"),
    (("tiny.json", "--gpu-memory", "lots"), "'lots' is not a size or a card; give one such as 24GB or rtx-4090"),
    (("tiny.json", "--gpu-memory", "0GiB"), "'0GiB' is not the memory of a device"),
    (("tiny.json", "--gpu", "a100"), "did you mean a100-40gb or a100-80gb?"),
    (("tiny.json", "--gpu", "rtx-4091"), "did you mean rtx-4090"),
    (("tiny.json", "--batch", "four"), "argument --batch: must be a whole number; got 'four'"),
    (("tiny.json", "--plot", "there/is/no/such.png"), "cannot be written; give a path in a folder that exists"),
    (("tiny.json", "--plot", "bars.txt"), "--plot bars.txt: give a file ending in .png, .svg or .pdf"),
    (
        ("tiny.json", "--set", "hidden_size=big"),
        "--set hidden_size=big: must be a number, where 32 is usual; got 'big'",
    ),
    (("tiny.json", "--set", "num_hidden_layers=-1"), "must be a whole number from 0 on, where 2 is usual"),
    (
        ("tiny.json", "--set", "num_attention_heads=7"),
        "The hidden size (32) is not a multiple of the number of attention",
    ),
    (("tiny.json", "--set", 'layer_norm_eps="small"'), "must be a number"),
    (("tiny.json", "--set", "hidden_act=3"), "hidden_act"),
    (("gemma-2-9b", "--attention", "sdpa"), "--attention eager"),
    (("tiny.json", "--tokens", "64", "--attention", "sdpa"), "only flash attention keeps its sequences apart"),
    (("tiny.json", "--tokens", "0"), "argument --tokens: must be at least 1; got 0"),
    (("tiny.json", "--image-size", "64"), "--image-size means nothing to tiny.json"),
    (("sd-vae", "--seq", "64"), "--seq means nothing to a model of images"),
    (("sd-vae", "--attention", "eager"), "--attention eager: sd-vae calls scaled_dot_product_attention"),
    (("sd-vae", "--set", "width=3"), "--set width=...: sd-vae has no such entry"),
    (("dit-xl-2", "--image-size", "100"), "--image-size must be a multiple of 8; got 100"),
    (("yolov8s-like", "--image-size", "100"), "--image-size must be a multiple of 32; got 100"),
    (("yolov8s-like", "--seq", "64"), "--seq means nothing to yolov8s-like, a convolutional net"),
    (("yolov8m-like", "--set", "heads=3"), "--set heads=...: yolov8m-like has no such entry, but depth, width,"),
    (("yolov8m-like", "--set", "width=0"), "width, most_channels and classes must be above 0; got 0, 768 and 80"),
    (("other.json",), "the inputs of diffusers' UNet2DModel are not known here"),
    (("report_models:own_defaults", "--image-size", "64"), "--image-size was given, but the function has no param"),
    (("vit-base", "--tokens", "64"), "--tokens means nothing to a model of images"),
    (("tiny.json", "--shard", "pp=2"), "argument --shard: a shard must be such as fsdp=8, tp=2 or fsdp=8,tp=2"),
    (("decoder.json", "--shard", "tp=3"), "shard: tp=3 does not divide the 4 of num_attention_heads"),
    (("decoder.json", "--shard", "tp=4"), "shard: tp=4 does not divide the 2 of num_key_value_heads"),
    (("tiny.json", "--lora-rank", "0"), "argument --lora-rank: must be at least 1; got 0"),
    (("tiny.json", "--lora-dropout", "x"), "--lora-dropout: must be a number from 0 to less than 1; got 'x'"),
    (("tiny.json", "--lora-dropout", "1"), "--lora-dropout: must be a number from 0 to less than 1; got '1'"),
    (("tiny.json", "--lora-targets", ","), "--lora-targets: must be names such as q_proj,v_proj; got ','"),
    (("tiny.json", "--lora-rank", "8"), "--lora-rank: nothing here has adapters; give --train-mode lora"),
    (("tiny.json", "--lora-targets", "q", "--gpu", "t4", "--no-choices"), "nothing here has adapters"),
    (("tiny.json", "--lora-targets", "q", "--gpu", "t4"), "no Linear is called 'q'; there are dense, key, query"),
    (("tiny.json", "--train-mode", "lora", "--lora-targets", "q"), "no Linear is called 'q'; there are dense, key"),
    (("tiny.json", "--checkpoint", "every=0"), "--checkpoint: must be every=N with N from 1 on; got 'every=0'"),
    (("tiny.json", "--checkpoint", "every=3"), "every=3, but BertForMaskedLM has 2 repeated layers"),
    (("report_models:own_defaults", "--checkpoint", "every=1"), "but Sequential has no repeated layers"),
    (("tiny.json", "--attention", "flash", "--dtype", "float32"), "flash attention takes 16-bit numbers"),
    (("tiny.json", "--set", "model_type=gpt2"), "--set model_type=gpt2: is not changed so; give a config.json of"),
    (("tiny.json", "--set", "dtype=float32"), "--set dtype=float32: is not changed so; give --dtype"),
    (("report_models:own_defaults", "--train-mode", "frozen"), "'frozen' needs a model with an embedding"),
    (("efficientnet-b0", "--train-mode", "frozen"), "'frozen' needs a model with an embedding"),
    (("unnamed.json",), "'architectures' must be a list of names; got 'BertForMaskedLM'"),
    (("number.json",), "'model_type' must be a name; got 3"),
    (("",), "no model is called ''"),
    (("tiny.json", "--shard", "tp=2"), "BertForMaskedLM has no plan for tensor parallelism; leave tp out"),
    (("folder",), "folder/config.json cannot be read"),
    (("owner/no-such-model",), "run `hf download owner/no-such-model config.json` once"),
    (("quantised.json",), "--train-mode qlora"),
    (("report_models:own_defaults", "--attention", "eager"), "the function has no parameter 'attention'"),
    (("report_models:own_defaults", "--no-loss"), "--no-loss is for models with a config"),
    (("report_models:needs_seq",), "the function wants 'seq'; give --seq"),
    (("report_models:wrong_input",), "the forward failed: RuntimeError"),
    (("report_models:not_a_model",), "must return (model, inputs)"),
    (
        ("report_models:three",),
        "must return (model, inputs), a module and its inputs; got a tuple of Linear, int, int",
    ),
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


def test_a_function_keeps_its_own_defaults_and_may_convert_its_model(folder: Path) -> None:
    result = run("report_models:own_defaults", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["setting"] == {"train mode": "full"}
    told = run("report_models:own_defaults", "--dtype", "bfloat16", "--batch", "2", "--json")
    assert told.exit_code == 0, told.output
    made = json.loads(told.stdout)
    assert made["setting"]["dtype"] == "bfloat16" and made["setting"]["batch"] == "2 samples"
    assert made["states"]["gradients"] == 2 * (3 * 4 + 4 + 2 * 4 + 4 * 3 + 3)
    kinds = made["stages"][0]["kinds"]
    assert kinds["activation functions"] == 2 * 2 * 4 * 7


def test_models_from_a_folder_and_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (folder / "folder" / "config.json").write_text((folder / "tiny.json").read_text())
    cached = {"owner/model": str(folder / "tiny.json")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: cached.get(name))
    made = [run(name, "--seq", "8", "--json") for name in ("tiny.json", "folder", "owner/model")]
    held = [json.loads(result.stdout)["stages"] for result in made]
    assert held[0] == held[1] == held[2]


TINY = {"block_out_channels": [16, 32], "norm_num_groups": 8, "layers_per_block": 1}
DIFFUSION = {
    "UNet2DConditionModel": TINY
    | {
        "sample_size": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 16,
    },
    "AutoencoderKL": TINY
    | {
        "sample_size": 16,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "DiTTransformer2DModel": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 8},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "entries"), DIFFUSION.items())
def test_models_of_diffusers_hold_what_real_ones_do(folder: Path, kind: str, entries: dict[str, object]) -> None:
    import diffusers

    (folder / "diffuser.json").write_text(json.dumps({"_class_name": kind, "act_fn": "silu", **entries}))
    setting = Setting(batch=2, dtype="float32", image_size=32 if kind == "AutoencoderKL" else 128)
    built = build("diffuser.json", setting)
    torch.manual_seed(0)
    real = getattr(diffusers, kind)(**entries).train()
    fake = report(built.model, peak=False, **built.kwargs)
    sizes = {name: value.shape for name, value in built.kwargs.items()}
    inputs = {name: torch.zeros(shape, dtype=built.kwargs[name].dtype) for name, shape in sizes.items()}
    assert fake.now.bytes == saved_memory(real, **inputs).bytes > 0
    first = next(iter(sizes.values()))
    assert first[0] == 2 and first[-1] == (32 if kind == "AutoencoderKL" else 16)
    chained = {stage.name for stage in fake.stages} & {"norms and activations in one"}
    assert bool(chained) == (kind != "DiTTransformer2DModel")


def test_the_size_of_images_is_an_option(folder: Path) -> None:
    setting = Setting(image_size=32, batch=3, overrides={"num_hidden_layers": 1, "patch_size": 16})
    with FakeTensorMode():
        built = build("vit-base", setting)
    assert built.kwargs["pixel_values"].shape == (3, 3, 32, 32)
    assert built.setting["batch"] == "3 images of 32 x 32"


def test_gemma_takes_the_attention_that_it_has(folder: Path) -> None:
    layers = ("--set", "num_hidden_layers=2", "--seq", "64", "--json")
    made = json.loads(run("gemma-2-9b", *layers).stdout)
    assert made["setting"]["attention"] == "eager"
    flash = json.loads(run("gemma-2-9b", *layers, "--attention", "flash").stdout)
    heads, kv_heads, tokens, width = 16, 8, 64, 256
    rows = 2 * (heads + 2 * kv_heads) * tokens * width * 2 + 2 * heads * tokens * 4  # q, k, v; log-sum-exp
    cos_and_sin = 2 * tokens * width * 2
    assert 0 <= flash["stages"][0]["kinds"]["attention"] - rows - cos_and_sin < 100  # seeds


def test_packed_sequences_take_what_one_as_long_takes(folder: Path) -> None:
    """Flash attention keeps them apart by where they begin; nothing is padded, and no mask is made."""
    layers = ("--set", "num_hidden_layers=2", "--set", "vocab_size=100", "--json")
    packed = json.loads(run("llama-3-8b", *layers, "--tokens", "96", "--seq", "32").stdout)
    assert packed["setting"]["batch"] == "96 tokens, packed sequences of 32"
    one = json.loads(run("llama-3-8b", *layers, "--seq", "96", "--attention", "flash").stdout)
    held, alone = packed["stages"][0], one["stages"][0]
    assert held["bytes"] == alone["bytes"] and held["kinds"] == alone["kinds"]
    beyond = json.loads(run("llama-3-8b", *layers, "--tokens", "9000").stdout)  # more than the model has positions
    assert beyond["setting"]["batch"] == "9000 tokens, packed sequences of 4096"


def test_the_card_has_its_share_of_each_part(folder: Path) -> None:
    words = " ".join(run("report_models:mlp", "--gpu-memory", "64MB", "--no-choices").stdout.split())
    assert "MiB (and of the card)" in words and "%)" in words
    assert "(and of the peak now)" in " ".join(run("report_models:mlp").stdout.split())


def test_csv_has_a_line_for_each_stage(folder: Path) -> None:
    import csv
    import io

    result = run("tiny.json", "report_models:mlp", "--gpu", "RTX 4090", "--csv", "--no-choices")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    made = json.loads(run("tiny.json", "report_models:mlp", "--gpu", "rtx4090", "--json", "--no-choices").stdout)
    assert [(row["model"], row["stage"]) for row in rows] == [
        (m["name"], s["name"]) for m in made for s in m["stages"]
    ]
    assert [int(row["held for backward"]) for row in rows] == [s["bytes"] for m in made for s in m["stages"]]
    assert {int(row["card"]) for row in rows} == {24564 * 2**20}


def test_tables_are_printed_even_if_the_picture_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", full)
    result = run("report_models:mlp", "--plot", "bars.png")
    assert result.exit_code == 2 and "no space left" in result.stderr
    assert "optimizer state" in result.stdout and "Not counted: the CUDA context" in " ".join(result.stdout.split())


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
    few = "--no-choices", "--set", "num_hidden_layers=2"
    result = run("tiny.json", "vit-base", *few, "--json", "--gpu-memory", "3GB", "--optimizer", "sgd")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    assert first["name"] == "tiny.json" and second["name"] == "vit-base"
    for made in (first, second):
        assert made["states"]["optimizer"] == 0 and made["gpu_memory"] == 3 * 2**30
        now, after = made["stages"][0], made["stages"][-1]
        assert after["largest_batch"] > now["largest_batch"] > 1


def test_the_table_says_the_whole_card(folder: Path) -> None:
    result = run("tiny.json", "--gpu-memory", "24GiB", "--no-choices")
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


def test_with_a_card_the_picture_has_its_line_and_the_whole_card(folder: Path) -> None:
    result = run("report_models:mlp", "--gpu-memory", "64MB", "--plot", "bars.svg", "--no-choices")
    assert result.exit_code == 0, result.output
    drawn = (folder / "bars.svg").read_text()
    for colour in ("#cc0000", COLOURS["optimizer state"], COLOURS["parameters"]):
        assert colour in drawn, colour
