"""The fitting tool: on an untouched tree it changes nothing, on any machine, and it fails where a fit is too bad."""

import copy
import dataclasses
import json

import fit as tool
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from optiacts import curves
from optiacts.decoders.fitted import FOLDER, fitted
from optiacts.decoders.fitting import FitError, refit, short
from optiacts.decoders.fitting.quality import Quality, first_within
from optiacts.decoders.rounded import round_once, rounded_forward, unit
from tests import fresh
from tests.samples import NAMES, SIXTEEN_BIT, every_finite
from tests.test_registry import swish


def unrunnable(curve):
    """``curve`` without PyTorch's forward, whose last digits depend on the CPU."""

    def refuse(*args):
        raise AssertionError("the fit must not depend on PyTorch's forward")

    return dataclasses.replace(curve, forward=refuse, forward_=refuse, forward_out=refuse)


class NoNarrowMathematics(TorchDispatchMode):
    """Refuses transcendental functions in less than float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        if name in {"exp", "erf", "erfc", "tanh", "log1p", "sigmoid", "gelu", "silu", "mish"}:
            assert args[0].dtype == torch.float64, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_rerunning_the_tool_changes_nothing(name, capsys):
    assert tool.main(["--check", "--only", name, "--parts", "polynomials", "valley"]) == 0
    printed = capsys.readouterr().out
    assert "polynomials  unchanged: float32: error of f'" in printed
    assert "0 of 1 curves would change" in printed


def test_rerunning_the_fit_for_gpus_changes_nothing():
    """Of one curve, since it takes long. With neither PyTorch's forward nor the coefficients of other curves."""
    curve = unrunnable(curves.get("gelu"))
    before = json.loads((FOLDER / "gelu.json").read_text())
    with NoNarrowMathematics():
        (result,) = refit(curve, before, ["short"])
    assert not result.changed and result.data is before["short"]
    assert all(quality.share < 1 for quality in result.qualities)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_decoders_for_gpus_keep_the_contract(name):
    """With a correctly rounded forward; test_short.py has PyTorch's."""
    curve = curves.get(name)
    with NoNarrowMathematics():
        qualities = short.Problem(unrunnable(curve) if curve.ops else curve).judge(fitted(curve, "short"))
    assert max(quality.share for quality in qualities) <= 1


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_rounded_forward_is_the_same_on_every_machine(name, dtype):
    """No output is so near to a tie that the last digits of float64 could turn it; ties are f(x) = x / 2."""
    curve, x = curves.get(name), every_finite(dtype)
    exact = curve.function(x.double(), torch)
    from_tie = ((exact / unit(exact, dtype)).remainder(1) - 0.5).abs() * unit(exact, dtype)
    normal = exact.abs() >= torch.finfo(dtype).tiny
    assert not curve.ops or (from_tie / exact.abs())[normal].min() > 1e-13
    y = rounded_forward(curve, x)
    found = curve.forward(x).double()
    off = (found - y.double()).abs() / unit(exact, dtype)
    # with AVX-512 PyTorch's GELU doubles its input, of which the largest overflow, and has no subnormal outputs
    told = (x > -1) & y.isfinite() & found.isfinite() & (normal | (found != 0))
    # the steps of QuickGELU pass a rounding on
    assert off[told].max() <= (1 if curve.ops else 2)


def test_rounding_is_done_once():
    tie = 1 + 2.0**-11  # between two float16 numbers; a little more must round up, even if float32 does not see it
    assert round_once(
        torch.tensor([tie, tie + 2.0**-40, tie + 2.0**-10], dtype=torch.float64), torch.float16
    ).tolist() == [
        1.0,
        1 + 2.0**-10,
        1 + 2.0**-9,
    ]
    assert round_once(torch.tensor([1e9, -1e-9], dtype=torch.float64), torch.float16).tolist() == [torch.inf, 0.0]


def test_what_is_worse_is_replaced():
    curve = curves.get("silu")
    before = json.loads((FOLDER / "silu.json").read_text())
    worse = copy.deepcopy(before)
    worse["polynomials"]["polynomials"][0][2] += 1e-7
    (result,) = refit(curve, worse, ["polynomials"])
    assert result.changed and result.before[0].found > 1.1 * result.qualities[0].found
    found = torch.tensor(result.data["polynomials"]), torch.tensor(before["polynomials"]["polynomials"])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_a_fit_that_misses_the_contract_says_what_to_do(monkeypatch):
    monkeypatch.setattr(short, "SPREADS", (0.2,))
    monkeypatch.setattr(short, "LEFT_OVER", (0.05,))
    monkeypatch.setattr(short, "LEAST", (0.1,))
    curve = dataclasses.replace(curves.get("silu"), decoder=curves.Unimodal(tail=(0, 3)))
    with pytest.raises(FitError, match=r"silu: .* It is \(0, 3\); it seems to be near \(1\.2, -0\.00\d+\)"):
        list(refit(curve, {}, ["short"]))
    with pytest.raises(FitError, match="relu is read in closed form"):
        list(refit(curves.get("relu"), {}))


def test_the_fit_for_gpus_goes_on_where_a_forward_of_several_steps_needs_it(monkeypatch):
    """Rounded after each step, its float16 outputs near the minimum are 1.31 floors off at first."""
    monkeypatch.delitem(short.DEGREES, torch.bfloat16)
    monkeypatch.setattr(short, "SPREADS", (0.2,))  # how well it does of all that it may try is asked above
    monkeypatch.setattr(short, "LEFT_OVER", (0.05,))
    monkeypatch.setattr(short, "LEAST", (0.05, 0.15))
    (result,) = refit(swish(1.3), {}, ["short"])
    assert all(quality.share <= 1 for quality in result.qualities)
    left, right = short.DEGREES[torch.float16]
    decoder = result.data["float16"]
    assert (len(decoder["left"]), len(decoder["right"])) == (left + 1, right + 1)  # for nothing, on a GPU


def test_the_first_attempt_within_the_limits_is_taken_else_the_best():
    tried = []

    def attempts(*found):
        for value in found:
            tried.append(value)
            yield value

    def judge(value):
        return Quality("one", value, 2.0), Quality("other", 0.5, 1.0)

    assert first_within(attempts(2.1, 1.9, 0.1), judge) == 1.9 and tried == [2.1, 1.9]
    assert first_within(attempts(2.3, 2.1, 2.2), judge) == 2.1


def test_fitting_is_imported_by_nobody_who_runs():
    """It needs mpmath and numpy."""
    code = "import sys, optiacts.decoders, optiacts.backends.native; print('mpmath' in sys.modules)"
    assert fresh.run(code, check=True).stdout == "False\n"
