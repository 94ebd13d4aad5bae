"""What is seen of a model in a world, and when two of them did the same."""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tests.behaviour.case import Case
from tests.behaviour.effects import LOG
from tests.behaviour.worlds import World

OURS = "_optiacts"  # attributes that a conversion may add to the user's modules begin so
OF_TORCH = set(vars(nn.Module())) - {"training", "_buffers"}  # hooks have numbers of their own


Gradients = dict[str, "Tensor | None"]


@dataclass
class Observed:
    outputs: list[Any] = field(default_factory=list)
    error: Any = None
    gradients: Gradients = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    effects: Any = None
    random: Any = None


def observe(model: nn.Module, case: Case, world: World, dtype: torch.dtype | None = None) -> Observed:
    """Two steps, forward and backward, from the same random state; everything that a user could see of them."""
    seen = Observed()
    seed()
    LOG.clear()
    model.zero_grad()
    given = world.inputs(case.inputs())
    leaves = tree_map(lambda v: _leaf(_leaf(v, world.dtype), dtype or world.dtype), given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with world.around(case, model):
                for _ in range(world.steps):
                    args = leaves if case.leaf else tree_map(_not_a_leaf, leaves)
                    output = world.call(model, *args)
                    seen.outputs += [_copy(value) for value in tree_leaves(output)]
                    seen.inputs += [_copy(value) for value in tree_leaves(args)]
                    _backward(output)
        except Exception as error:
            seen.error = (type(error), _told(error), user_frames(error))
    seen.random = random_state()
    named = [*model.named_parameters(), *((f"input {i}", v) for i, v in enumerate(tree_leaves(leaves)))]
    seen.gradients = {name: _copy(v.grad) for name, v in named if isinstance(v, Tensor)}
    seen.state = dict(described(model))
    seen.effects = described_value(LOG)
    return seen


Reference = Callable[[], Observed]  # observed only where it decides: gradients of the same bits need none


def differences(original: Observed, ours: Observed, reference: Reference | None, world: World) -> list[str]:
    """In words, what ``ours`` did that ``original`` did not. ``reference`` observes the original in float64."""
    if original.error != ours.error:
        if ours.error is None and "modified by an inplace operation" in original.error[1]:
            return []  # PyTorch needs the activation's input, which was changed; ours needs the output
        return [f"error: {original.error} became {ours.error}"]
    told = []
    if original.random != ours.random and not world.refusal:  # jit draws some itself
        told.append("other random numbers were drawn")
    if original.effects != ours.effects:
        told.append(f"effects: {_short(original.effects)} became {_short(ours.effects)}")
    names = sorted(original.state.keys() | ours.state.keys())
    changed = [name for name in names if original.state.get(name) != ours.state.get(name)]
    if changed:
        told.append(f"the state of {', '.join(changed)}")
    for what in ("outputs", "inputs"):
        a, b = getattr(original, what), getattr(ours, what)
        if len(a) != len(b) or not all(same_value(x, y, world.exact) for x, y in zip(a, b, strict=True)):
            told.append(f"{what}: {_short(a)} became {_short(b)}")
    return [*told, *_wrong_gradients(original, ours, reference, world)]


def _wrong_gradients(
    original: Observed, observed: Observed, reference: Reference | None, world: World
) -> Iterator[str]:
    theirs, ours = original.gradients, observed.gradients
    if theirs.keys() != ours.keys():
        yield f"gradients of {set(theirs) ^ set(ours)}"
        return
    if all(_same_gradient(theirs[name], b) for name, b in ours.items()):
        return
    factor, slack = (2.0, 4e-3 * world.in_a_row**0.5) if world.coarse else (1.1, world.slack)
    if reference and _near(theirs, ours, slack):
        return
    ideal = reference() if reference else None
    if ideal and not _tells_the_same(original, ideal):
        ideal = None
    exact = ideal.gradients if ideal else theirs
    if ideal is None:
        slack *= 4  # PyTorch's own error hides in the difference
    largest = max((float(g.double().norm()) for g in exact.values() if g is not None), default=0.0)
    for name, b in ours.items():
        a, e = theirs[name], exact.get(name)
        if a is None or b is None or e is None:
            if a is not b:
                yield f"gradient of {name}: {_short(a)} became {_short(b)}"
            continue
        if a.dtype != b.dtype or a.shape != b.shape:
            yield f"gradient of {name}: {a.dtype} {a.shape} became {b.dtype} {b.shape}"
            continue
        if _same_gradient(a, b):
            continue
        scale = max(float(e.double().norm()), 1e-2 * largest)
        error, allowed = (float((g.double() - e.double()).norm()) for g in (b, a))
        if not error <= factor * allowed + slack * scale:
            yield f"gradient of {name}: off by {error / scale:.1e}, PyTorch's own by {allowed / scale:.1e}"


def _near(theirs: Gradients, ours: Gradients, slack: float) -> bool:
    """Whether no reference could speak against ``ours``.

    What is this near to PyTorch's gradient is off by at most PyTorch's own error and the slack, as measured by the
    exact gradient: its norm is more than half of PyTorch's, or PyTorch's own error is as large and grants far more.
    """
    pairs = [(theirs[name], b) for name, b in ours.items()]
    if any((a is None) is not (b is None) for a, b in pairs):
        return False
    there = [(a, b) for a, b in pairs if a is not None and b is not None]
    if any(a.dtype != b.dtype or a.shape != b.shape for a, b in there):
        return False
    return all(
        _same_gradient(a, b) or float((b.double() - a.double()).norm()) <= slack / 2 * float(a.double().norm())
        for a, b in there
    )


def _same_gradient(a: Tensor | None, b: Tensor | None) -> bool:
    """None both, or of the same bits; where some are NaN, the same ones."""
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return a is b
    return torch.equal(a, b) or bool(torch.equal(a.isnan(), b.isnan()) and a.isnan().any())


def _tells_the_same(original: Observed, reference: Observed) -> bool:
    """float64 draws other random numbers and may take other branches; then it tells nothing."""
    if reference.error or len(reference.outputs) != len(original.outputs):
        return False
    pairs = [(a, b) for a, b in zip(original.outputs, reference.outputs, strict=True) if isinstance(a, Tensor)]
    return all(a.shape == b.shape and torch.allclose(a.double(), b.double(), 0.05, 0.05) for a, b in pairs)


def same_value(a: Any, b: Any, exact: bool = True) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and (a == b or not isinstance(a, (int, float, str, tuple)))
    alike = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
    alike = alike and a.requires_grad == b.requires_grad and a.device == b.device
    if a.device.type == "meta" or not alike:
        return alike
    # what is not exact are gradients: an input near a curve's minimum may be off by 1.2e-4 by contract
    return bits(a) == bits(b) if exact else torch.allclose(a, b, 1.2e-4, 1.2e-4, equal_nan=True)


def bits(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(plain.view(torch.uint8).numpy()) if plain.numel() else b""


def described(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Buffers, parameters and attributes of all modules, in values that can be compared."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith(OURS) and name not in OF_TORCH:
                yield f"{path}.{name}", described_value(value)
    for name, parameter in model.named_parameters():
        yield name, (parameter.requires_grad, described_value(parameter.data))


def described_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return "tensor", str(value.dtype), tuple(value.shape), None if value.is_meta else hash(bits(value))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [described_value(v) for v in value]
    if isinstance(value, dict):
        return type(value).__name__, {str(k): described_value(v) for k, v in value.items()}
    return value if isinstance(value, (int, float, str, bytes, type(None))) else type(value).__name__


def user_frames(error: BaseException) -> list[tuple[str, int | None, str]]:
    """Where the error passed through the user's own files: what a traceback shows of them."""
    frames = traceback.extract_tb(error.__traceback__)
    return [
        (Path(f.filename).name, f.lineno, f.name)
        for f in frames
        if Path(f.filename).name.startswith(("cases_", "elsewhere"))
    ]


def seed() -> None:
    torch.default_generator.manual_seed(3)  # torch.manual_seed takes its time over devices that are not there
    numpy.random.seed(3)
    random.seed(3)


def random_state() -> tuple[Any, ...]:
    _, keys, *rest = numpy.random.get_state()
    return hash(bits(torch.random.get_rng_state())), hash(keys.tobytes()), *rest, hash(random.getstate())


def _told(error: Exception) -> str:
    """Its message, without the names that autograd gives to its nodes."""
    return str(error).partition(", which is output")[0]


def _backward(output: Any) -> None:
    floating = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    if floating:
        sum((_loss(t) for t in floating), torch.zeros((), dtype=torch.float64)).backward()


def _loss(tensor: Tensor) -> Tensor:
    weight = torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64).cos().view(tensor.shape)
    return (tensor.double() * weight).sum()


def _leaf(value: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().to(dtype or value.dtype, copy=True).requires_grad_()


def _not_a_leaf(value: Any) -> Any:
    return value * 1 if isinstance(value, Tensor) and value.requires_grad else value


def _copy(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:160]
