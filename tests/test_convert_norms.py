"""Which norms are recognised, and what their conversion does."""

import copy
import importlib
import pickle
import re
import types
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nanochat.modeling_nanochat import NanoChatRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import optiacts
from optiacts.conversion.norm_recognition import recognise_norm
from optiacts.conversion.purity import ImpureError
from optiacts.norms import Norm

WIDTH = 64


def _kind(module: nn.Module, dtype: torch.dtype = torch.float32) -> Norm:
    found = recognise_norm(module)
    return found.kinds[dtype, dtype if found.weight or found.bias else None]


# --- all norms of the libraries ---

# How many of the classes named so are recognised as what, with the versions that constraints.txt pins. The floor may
# rise and not fall.
FLOOR = {
    "transformers": {"RMSNorm w": 177, "RMSNorm 1+w": 15, "RMSNorm": 8, "LayerNorm w+b": 31, "LayerNorm w": 4},
    "diffusers": {"RMSNorm w": 5, "RMSNorm 1+w": 2, "LayerNorm w+b": 2},
}


def _classes(library: str) -> Iterator[type[nn.Module]]:
    """All modules that are called norms."""
    root = Path(importlib.import_module(library).__file__ or "").parent
    for file in sorted((root / "models").rglob("*.py")):
        if file.name.startswith("modular_") or "flax" in file.name:
            continue
        names = re.findall(r"^class (\w*Norm\w*)", file.read_text(), re.MULTILINE)
        if not names:
            continue
        try:
            home = importlib.import_module(".".join((library, *file.relative_to(root).with_suffix("").parts)))
        except ImportError:
            continue
        kinds = (getattr(home, name) for name in names)
        yield from (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, nn.Module))


def _built(kind: type[nn.Module]) -> nn.Module | None:
    for arguments in ((WIDTH,), (WIDTH, 1e-6), ((WIDTH,),), ()):
        try:
            return kind(*arguments)
        except Exception:
            continue
    return None


def _text(module: nn.Module) -> object:
    """What distinguishes the code of modules, and their numbers."""
    kind = type(module)
    functions = {n: f for n, f in vars(kind).items() if isinstance(f, types.FunctionType) and n != "__init__"}
    code = tuple((n, f.__code__.co_code, f.__code__.co_names, str(f.__defaults__)) for n, f in functions.items())
    constants = tuple(c for f in functions.values() for c in f.__code__.co_consts if not isinstance(c, str))
    own = {n: v for n, v in vars(module).items() if isinstance(v, (bool, int, float, str)) and n != "training"}
    return kind.__bases__, code, repr(constants), repr(own), str({n: p.shape for n, p in module.named_parameters()})


def _title(module: nn.Module) -> str:
    found = recognise_norm(module)
    kind = next(iter(found.kinds.values()))
    parts = (f"{'1+' if kind.offset else ''}w" if found.weight else "", "b" if found.bias else "")
    return f"{found.name} {'+'.join(filter(None, parts))}".strip()


@pytest.mark.parametrize("library", ["transformers", "diffusers"])
def test_every_norm_of(library: str) -> None:
    """As many as ever are recognised; each one, converted, is itself forward and its float64 mathematics backward."""
    counted: Counter[str] = Counter()
    wrong = []
    met: dict[object, str] = {}  # hundreds of classes have a few dozen texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in _classes(library):
            module = _built(kind)
            if module is None or module._modules:
                continue
            text = _text(module)
            if text in met:
                counted.update([met[text]] if met[text] else [])
                continue
            met[text] = ""
            try:
                met[text] = _title(module)
                counted[met[text]] += 1
            except ImpureError:
                whats = {entry.what for entry in optiacts.convert(module).converted}
                assert not whats & {"RMSNorm", "LayerNorm"}, kind
                continue
            wrong += [f"{kind.__name__}: {told}" for told in _faults(module)]
    assert not wrong, wrong
    missing = {what: (counted[what], floor) for what, floor in FLOOR[library].items() if counted[what] < floor}
    assert not missing, (missing, counted)


def _faults(module: nn.Module) -> Iterator[str]:
    found = recognise_norm(module)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) / 2 + 0.6)
    ndim = min(found.ndims & {3, 4} or found.ndims)
    shape = [6, 5, 7, WIDTH][-ndim:]
    kind = _kind(module)
    if kind.channels_first:
        shape = [6, WIDTH, 5, 7][:ndim]
    x = torch.randn(shape, generator=generator)
    grad = torch.randn(shape, generator=generator)
    leaves = [x.double().requires_grad_()]
    named = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    y = kind.reference(leaves[0], named.get(found.weight), named.get(found.bias))
    ideal = torch.autograd.grad(y, [*leaves, *named.values()], grad.double())
    expected = module(x)
    if not optiacts.convert(module).converted:
        yield "not converted"
        return
    given = x.clone().requires_grad_()
    output = module(given)
    if not torch.equal(output, expected):
        yield "other bits"
    if "OptiActs" not in output.grad_fn.name():
        yield f"keeps what it kept: {output.grad_fn.name()}"
    ours = torch.autograd.grad(output, [given, *module.parameters()], grad)
    for a, b in zip(ours, ideal, strict=True):
        if (a.double() - b).norm() > 2e-6 * b.norm():
            yield f"a gradient off by {float((a.double() - b).norm() / b.norm()):.1e}"


# --- what is told of a norm ---


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LayerNorm(8), Norm(True, 1e-5)),
        (nn.LayerNorm((4, 8), eps=0.5), Norm(True, 0.5, 2)),
        (nn.LayerNorm(8, eps=1e-12, elementwise_affine=False), Norm(True, 1e-12)),
        (nn.RMSNorm(8), Norm(False, torch.finfo(torch.float32).eps)),
        (LlamaRMSNorm(8, eps=1e-6), Norm(False, 1e-6)),
        (LlamaRMSNorm(8, eps=1e-30), None),  # no row of a probe is that small
        (T5LayerNorm(8), Norm(False, 1e-6)),
        (Gemma3RMSNorm(8), Norm(False, 1e-6, offset=1.0)),
        (NanoChatRMSNorm(), Norm(False, 1e-6)),
        (DiffusersRMSNorm(8, eps=1e-5, bias=True), Norm(False, 1e-5)),
        (ConvNextLayerNorm(8, data_format="channels_first"), Norm(True, 1e-6, 1, True)),
        (nn.LayerNorm(2), None),  # too few channels to tell anything
        (nn.GroupNorm(2, 8), None),
        (nn.BatchNorm1d(8), None),
        (nn.Linear(8, 8), None),
        (nn.Identity(), None),
        (nn.PReLU(8), None),
    ],
    ids=repr,
)
def test_kind(module: nn.Module, expected: Norm | None) -> None:
    if expected is None:
        with pytest.raises(ImpureError):
            recognise_norm(module)
    else:
        assert _kind(module) == expected


def test_dtypes_are_those_that_agree() -> None:
    found = recognise_norm(LlamaRMSNorm(WIDTH))
    same = {(d, d) for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
    assert same <= set(found.kinds)
    assert (torch.bfloat16, torch.float32) in found.kinds
    assert (torch.float32, torch.float32) in recognise_norm(nn.LayerNorm(WIDTH)).kinds
    assert found.ndims == {1, 2, 3, 4, 5}
    assert recognise_norm(ConvNextLayerNorm(8, data_format="channels_first")).ndims == {4}


def test_remainder_bits_where_a_norm_rounds_once() -> None:
    def remainder(module: nn.Module, dtype: torch.dtype) -> bool:
        return _kind(module, dtype).remainder

    assert remainder(nn.RMSNorm(WIDTH), torch.bfloat16)
    assert not remainder(nn.RMSNorm(WIDTH), torch.float32)  # nothing to tell: 32 bits are enough
    assert not remainder(LlamaRMSNorm(WIDTH), torch.bfloat16)
    assert remainder(Gemma3RMSNorm(WIDTH), torch.bfloat16)


def test_own_norms_are_left_as_they_are() -> None:
    model = nn.Sequential(optiacts.LayerNorm(8), optiacts.RMSNorm(8))
    assert not optiacts.convert(model).entries


# --- modes ---


class Block(nn.Module):
    """A residual branch with a norm before and one after it."""

    def __init__(self, norm: type[nn.Module] = LlamaRMSNorm, width: int = WIDTH, p: float = 0.0) -> None:
        super().__init__()
        self.before, self.after = norm(width), norm(width)
        self.drop, self.linear, self.head = nn.Dropout(p), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.after(self.linear(self.drop(self.before(x)))))


def _notes(model: nn.Module, **options: object) -> dict[str, str]:
    return {entry.path: entry.note for entry in optiacts.convert(model, **options).converted}  # type: ignore[arg-type]


def _held(model: nn.Module, x: Tensor) -> int:
    return optiacts.saved_memory(model, x).bytes


@pytest.mark.parametrize("example", [False, True], ids=["read", "rehearsed"])
def test_modes(example: bool) -> None:
    def notes(model: nn.Module) -> dict[str, str]:
        return _notes(model, **({"example_inputs": torch.randn(2, 3, WIDTH, requires_grad=True)} if example else {}))

    found = notes(Block())
    assert found["before"] == "keeps its output"
    assert found["after"].startswith("keeps its input: ")
    assert "add" in found["after"]
    assert notes(Block(p=0.1))["before"].startswith("keeps its input: ")
    frozen = Block()
    frozen.linear.requires_grad_(False)
    assert notes(frozen)["before"].startswith("keeps its input: ")
    assert ("frozen" if not example else "linear") in _lower(notes, frozen)


def _lower(notes: object, frozen: nn.Module) -> str:
    optiacts.revert(frozen)
    return notes(frozen)["before"].lower()  # type: ignore[operator]


def test_a_frozen_layer_counts_only_for_norms() -> None:
    """An activation before a frozen Linear is converted as ever: adapters may come."""
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8).requires_grad_(False))
    assert [entry.what for entry in optiacts.convert(model).converted] == ["gelu"]


def test_saved_bytes() -> None:
    """Of a norm written out in bfloat16, to the byte."""
    rows, width = 96, 128
    x = torch.randn(rows, width, dtype=torch.bfloat16)
    model = Block(width=width).bfloat16()
    optiacts.convert(model)
    tensor = 2 * rows * width
    shared = tensor  # of ``before`` with the linear
    inside = tensor  # the input of ``after``
    head = tensor
    assert _held(model, x) == shared + inside + head + 2 * 4 * rows + 4 * width
    before = _held(Block(width=width).bfloat16(), x)
    assert before > 2 * (shared + inside + head)


def test_off_is_as_before() -> None:
    model = Block()
    assert not optiacts.convert(model, norms=False, dropout=False).entries
    x = torch.randn(2, 3, WIDTH)
    assert _held(model, x) == _held(Block(), x)


# --- what may happen to a converted norm ---


def test_pickles_keep_the_mode() -> None:
    x = torch.randn(96, WIDTH)
    model = Block()
    optiacts.convert(model)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert _held(copied, x) == _held(model, x)
        assert torch.equal(copied(x), model(x))
        assert not optiacts.convert(copied).entries
        optiacts.revert(copied)
        assert type(copied.before) is LlamaRMSNorm


def test_overwritten_names_the_module() -> None:
    class Unseen(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x)
            getattr(y, "mul" + "_")(2)
            return self.linear(y)

    model = nn.ModuleDict({"block": Unseen()})
    optiacts.convert(model)
    output = model["block"](torch.randn(4, WIDTH))
    with pytest.raises(optiacts.OverwrittenError, match=r"block\.before \(LlamaRMSNorm\)"):
        output.sum().backward()


@pytest.mark.parametrize("example", [False, True], ids=["read", "rehearsed"])
def test_channels_first_is_no_view(example: bool) -> None:
    """A view that comes out of a Function could not be changed in place, where PyTorch's own result can."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = ConvNextLayerNorm(8, data_format="channels_first")

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    model, original = Net(), Net()
    x = torch.randn(2, 8, 3, 5)
    optiacts.convert(model, **({"example_inputs": x} if example else {}))  # type: ignore[arg-type]
    y, expected = model(x), original(x)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    with torch.no_grad():
        y.add_(1)
    if example:  # nobody takes the output: the norm keeps its input
        y.sum().backward()
        return
    with pytest.raises(optiacts.OverwrittenError, match=r"norm \(ConvNextLayerNorm\)"):
        y.sum().backward()


def test_changes_found_by_rehearsal() -> None:
    class Unseen(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x)
            getattr(y, "mul" + "_")(2)
            return self.linear(y)

    report = optiacts.convert(Unseen(), example_inputs=torch.randn(4, WIDTH))
    left = {entry.path: entry.reason for entry in report.left}
    assert "changed in place" in left["before"]


@pytest.mark.parametrize(
    "change",
    [
        lambda norm: setattr(norm, "variance_epsilon", 0.5),
        lambda norm: setattr(norm, "weight", nn.Parameter(torch.ones(1))),
        lambda norm: nn.utils.parametrizations.weight_norm(norm, dim=None),
        lambda norm: setattr(norm, "forward", lambda x: x * 2),
        lambda norm: norm.register_buffer("weight_", torch.ones(3)),
        lambda norm: nn.init.zeros_(norm.weight),
    ],
    ids=["eps", "one weight", "weight norm", "forward", "buffer", "zeros"],
)
def test_changed_later(change: object) -> None:
    model, original = Block(), Block()
    original.load_state_dict(model.state_dict())
    optiacts.convert(model)
    for block in (model, original):
        change(block.before)  # type: ignore[operator]
    x = torch.randn(5, WIDTH)
    ours, theirs = model(x), original(x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for a, b in zip(model.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-5, atol=2e-5)


def test_a_function_of_the_class_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.LayerNorm(8))
    optiacts.convert(model)
    x = torch.randn(4, 8)
    monkeypatch.setattr(functional, "layer_norm", lambda x, *args: x * 3)
    assert torch.equal(model(x), x * 3)


def test_autocast_keeps_the_input() -> None:
    """What follows keeps a cast of its own."""
    x = torch.randn(96, WIDTH, requires_grad=True)
    model, original = Block(nn.LayerNorm), Block(nn.LayerNorm)
    original.load_state_dict(model.state_dict())
    optiacts.convert(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), original(x))
        assert _held(model, x) <= _held(original, x)


def test_libraries_are_the_pinned_ones() -> None:
    """Else the floor above says nothing."""
    pinned = (Path(__file__).parents[1] / "constraints.txt").read_text()
    for library in (transformers, diffusers):
        assert f"{library.__name__}=={library.__version__}" in pinned


def test_a_norm_of_fake_tensors_reaches_no_kernel() -> None:
    """They have no memory: to take an address of it would end the process."""
    with FakeTensorMode():
        model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64))
        optiacts.convert(model)
        x = torch.randn(4, 64, requires_grad=True)
        model(x).sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape
