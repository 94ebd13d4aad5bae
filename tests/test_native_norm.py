"""The CPU kernels of the norms at every instruction set: against float64 mathematics, and against eager."""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import optiacts
from optiacts import backends
from optiacts.backends import eager_norm, native_library, native_norm, selection
from optiacts.norms import Norm, Saved
from optiacts.packing import packed_shape
from tests.kernels import DTYPES, HALVES, LEVELS, named, same_bits

SIZES = (1, 7, 31, 33, 768, 1000, 4096)
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
MEANS = pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    native_library.use_level(request.param)
    yield request.param
    native_library.use_level(native_library.best_level())


@dataclass(frozen=True)
class Case:
    """A norm of random numbers, its output as an ideal forward rounds it, and what is saved of it."""

    kind: Norm
    x: Tensor
    y: Tensor
    grad: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor
    rstd: Tensor
    bits: Tensor | None

    def saved(self, output: bool) -> tuple[Tensor | None, ...]:
        """The gradient, and the fields of ``Saved`` up to the bits."""
        if not output:
            return (
                self.grad,
                self.x,
                self.mean if self.kind.centered else None,
                self.rstd,
                *self.factors(),
                *3 * [None],
            )
        return self.grad, self.y, None, self.rstd, *self.factors(), None, None, self.bits

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.shift


def backward(backend, grad, *arguments):
    """The backward of a backend: fields of ``Saved`` up to the bits, then the norm, output mode or not, and dtype."""
    *fields, kind, output, dtype = arguments
    return backend.norm_backward(grad, Saved(*fields, kind.centered, output), dtype)


def case(rows: int, cols: int, dtype: torch.dtype, centered: bool, y_dtype: torch.dtype | None = None) -> Case:
    generator = torch.Generator().manual_seed(rows + cols)
    kind = Norm(centered, 1e-5, remainder=True)
    x = (1.5 * torch.randn(rows, cols, generator=generator) + 0.5).to(dtype)
    scale = 0.5 + torch.rand(cols, generator=generator)
    shift = 0.5 * torch.randn(cols, generator=generator)
    y = kind.reference(x.double(), scale.double(), shift.double()).to(y_dtype or dtype)
    grad = torch.randn(rows, cols, generator=generator).to(y.dtype)
    mean, rstd, bits = native_norm.norm_statistics(x, y, scale, shift, kind)
    return Case(kind, x, y, grad, scale, shift, mean, rstd, bits)


def exact_gradients(case: Case) -> tuple[Tensor, ...]:
    """dx, dw and db of the input in float64."""
    inputs = [t.double().requires_grad_() for t in (case.x, case.scale, case.shift)]
    return torch.autograd.grad(case.kind.reference(*inputs), inputs, case.grad.double())


def error(result: Tensor, exact: Tensor) -> float:
    return ((result.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()


@MEANS
@pytest.mark.parametrize("cols", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_statistics_are_those_of_float64(dtype, cols, centered, level):
    c = case(9, cols, dtype, centered)
    mean, rstd = c.kind.statistics(c.x.double())
    assert c.rstd.dtype == torch.float32 and c.rstd.shape == (9, 1)
    assert (c.rstd / rstd - 1).abs().max() <= 2.0**-22
    if centered:
        assert (c.mean - mean).abs().max() <= 2.0**-23 * c.x.abs().max()
    else:
        assert c.mean.shape == () and c.mean == 0


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e18])
def test_the_variance_of_what_is_far_from_0(offset, level):
    """The squares alone would tell none of it."""
    spread = max(1.0, offset * 1e-3)
    x = (offset + spread * torch.randn(5, 1000, generator=torch.Generator().manual_seed(1))).float()
    kind = Norm(True, 0.0)
    mean, rstd, _ = native_norm.norm_statistics(x, x, None, None, kind)
    exact_mean, exact = kind.statistics(x.double())
    assert (mean / exact_mean - 1).abs().max() <= 2.0**-23
    assert (rstd / exact - 1).abs().max() <= 2.0**-22


def test_rows_of_a_million_elements(level):
    x = torch.rand(2, 1_000_003, generator=torch.Generator().manual_seed(2))
    kind = Norm(False, 1e-6)
    _, rstd, _ = native_norm.norm_statistics(x, x, None, None, kind)
    assert (rstd / kind.statistics(x.double())[1] - 1).abs().max() <= 2.0**-22
    grad, factors = torch.rand_like(x), (torch.ones(x.shape[-1]), torch.zeros(x.shape[-1]))
    c = Case(kind, x, x, grad, *factors, x.new_zeros(()), rstd, None)
    dx, *_ = backward(native_norm, *c.saved(output=False), kind, False, torch.float32)
    assert error(dx, exact_gradients(c)[0]) <= 2.0**-22


@MEANS
@pytest.mark.parametrize("cols", SIZES)
@pytest.mark.parametrize("dtype", HALVES, **named)
def test_remainder_bits_are_those_of_eager(dtype, cols, centered, level):
    """Of the same statistics, to the bit; zeros, subnormals and the largest numbers are among the outputs."""
    c = case(9, cols, dtype, centered)
    y = c.y.clone()
    for row, factor in enumerate((0.0, 1e-6, 1e-38, 1e-40)):
        y[row] = (c.y[row].double() * factor).to(dtype)
    y[4] = torch.finfo(dtype).max
    for scale, shift in (c.factors(), (c.scale, None), (None, None)):
        mean, rstd, bits = native_norm.norm_statistics(c.x, y, scale, shift, c.kind)
        exact = (c.x.float() - mean) * rstd
        exact = exact if scale is None else exact * scale
        exact = exact if shift is None else exact + shift
        assert bits is not None and torch.equal(bits, eager_norm.remainder(exact, y))


@MEANS
@pytest.mark.parametrize("cols", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("output", [True, False], ids=["output", "input"])
def test_gradients_are_those_of_float64(output, dtype, cols, centered, level):
    """Of what is kept, whatever that tells of the input: float32's own rounding and the result's are left."""
    c = case(40, cols, dtype, centered)
    results = backward(native_norm, *c.saved(output), c.kind, output, dtype)
    eager = backward(eager_norm, *c.saved(output), c.kind, output, torch.float32)
    rstd, scale, grad = c.rstd.double(), c.scale.double(), c.grad.double()
    if output:
        x_hat = (eager_norm.refined(c.y, c.bits).double() - c.shift.double()) / scale
    else:
        x_hat = (c.x.double() - c.mean) * rstd
    exact = eager_norm.gradients(grad, x_hat, rstd, scale, centered)
    # Few columns: what cancels in dx leaves the rounding errors of larger terms. Some x_hat are of that kind as well.
    terms = ((rstd * scale * grad).norm() + (x_hat * rstd * scale * grad).norm(), (grad * x_hat).norm(), grad.norm())
    for result, wanted, by_eager, size in zip(results, exact, eager, terms, strict=True):
        rounding = ROUNDING[result.dtype] * wanted.norm()
        assert (result.double() - wanted).norm() <= rounding + 4 * 2.0**-24 * (size + wanted.norm())
        assert (by_eager.double() - wanted).norm() <= 4 * 2.0**-24 * (size + wanted.norm())
    assert results[0].dtype == dtype and results[1].dtype == results[2].dtype == torch.float32


@MEANS
@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("outliers", [1.0, 40.0])
@pytest.mark.parametrize("cols", [768, 4096])
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_the_accuracy_contract(dtype, cols, outliers, correlation, centered):
    """From the output within 1.3 times the error of an ideal fused kernel: exact statistics, one rounding."""
    generator = torch.Generator().manual_seed(cols)
    x = torch.randn(512, cols, generator=generator)
    x[:, ::97] *= outliers
    x = x.to(dtype)
    kind = Norm(centered, 1e-5, remainder=True)
    weight, bias = (1 + 0.1 * torch.randn(cols, generator=generator)), 0.1 * torch.randn(cols, generator=generator)
    weight, bias = weight.to(dtype), bias.to(dtype)
    scale, shift = weight.float(), bias.float()
    y = kind.reference(x.double(), weight.double(), bias.double()).to(dtype)
    x_hat = kind.reference(x.double(), None, None)
    grad = (torch.randn(512, cols, generator=generator) + correlation * x_hat).to(dtype)
    mean, rstd, bits = native_norm.norm_statistics(x, y, scale, shift, kind)
    saved = (grad, y, None, rstd, scale, shift, None, None, bits)
    dx, by_scale, _ = backward(native_norm, *saved, kind, True, dtype)
    exact = exact_gradients(Case(kind, x, y, grad, scale, shift, mean, rstd, bits))
    mean, rstd = (statistic.float() for statistic in kind.statistics(x.double()))
    ideal = backward(eager_norm, grad, x, mean, rstd, scale, shift, None, None, None, kind, False, dtype)
    limit = 1.3 if outliers == 1 else 1.6
    assert error(dx, exact[0]) <= limit * error(ideal[0], exact[0])
    assert error(by_scale.to(dtype), exact[1]) <= limit * error(ideal[1].to(dtype), exact[1])


@pytest.mark.parametrize("rows", [1, 2, 300, 1025])
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_any_number_of_rows_on_any_number_of_threads(rows, dtype):
    c = case(rows, 130, dtype, True)
    exact, results = exact_gradients(c), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            mean, rstd, bits = native_norm.norm_statistics(c.x, c.y, *c.factors(), c.kind)
            twice = [backward(native_norm, *c.saved(False), c.kind, False, dtype) for _ in range(2)]
        finally:
            torch.set_num_threads(1)
        assert torch.equal(mean, c.mean) and torch.equal(rstd, c.rstd)
        assert bits is c.bits is None or torch.equal(bits, c.bits)
        assert all(torch.equal(one, other) for one, other in zip(*twice, strict=True))
        results.append(twice[0])
    for dx, by_scale, by_shift in results:
        assert torch.equal(dx, results[0][0])  # a row does not know of the others
        assert error(by_scale, exact[1]) <= 8 * 2.0**-24 and error(by_shift, exact[2]) <= 8 * 2.0**-24


def test_sums_over_many_rows_stay_exact():
    """2^17 equal terms: one long sum in float32 would be off by more than 2^-20."""
    rows = 1 << 17
    x, grad = torch.tensor([[1.0, -1.0]]).expand(rows, 2), torch.full((rows, 2), 0.1)
    rstd = torch.ones(rows, 1)
    _, by_scale, by_shift = backward(
        native_norm, grad, x, None, rstd, *5 * [None], Norm(False, 0.0), False, torch.float32
    )
    exact = rows * grad[0].double()
    assert (by_shift / exact - 1).abs().max() <= 2.0**-20
    assert (by_scale / (exact * x[0]) - 1).abs().max() <= 2.0**-20


@pytest.mark.parametrize("kept", DTYPES, **named)
@pytest.mark.parametrize("grad", DTYPES, **named)
@pytest.mark.parametrize("result", DTYPES, **named)
def test_every_mixture_of_dtypes(kept, grad, result, level):
    """Against float64; a float32 result is rounded a few times on its way."""
    for output in (True, False):
        c = case(6, 77, kept, True)
        given, what, *saved, bits = c.saved(output)
        dx, by_scale, by_shift = backward(native_norm, given.to(grad), what, *saved, bits, c.kind, output, result)
        fields = [None if t is None else t.double() for t in (eager_norm.refined(what, bits), *saved)]
        exact_dx, *exact = backward(eager_norm, given.to(grad).double(), *fields, None, c.kind, output, torch.float64)
        assert dx.dtype == result
        assert error(dx, exact_dx) <= ROUNDING[result] * (1.5 if result is torch.float32 else 1)
        for mine, wanted in zip((by_scale, by_shift), exact, strict=True):
            assert error(mine, wanted) <= 4 * 2.0**-24


@MEANS
@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("x_dtype", DTYPES, **named)
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e30], ids=str)
def test_rescued_channels_are_exact(scale, x_dtype, dtype, centered, level):
    """Their output is of no use: a number of any kind, NaN too."""
    c = case(20, 1100, x_dtype, centered, y_dtype=dtype)
    columns = torch.tensor([0, 3, 4, 100, 511, 512, 1023, 1098, 1099])
    scales = c.scale.index_fill(0, columns, scale)
    grad = c.grad.index_fill(-1, columns, 0.01)
    y = c.kind.reference(c.x.double(), scales.double(), c.shift.double()).to(dtype)
    y[:, 3], y[:, 4], y[:, 511] = torch.nan, torch.inf, 0.0
    rescued = c.x.index_select(-1, columns)
    mean = c.mean if centered else None
    arguments = (grad, y, mean, c.rstd, scales, c.shift, columns, rescued, None, c.kind, True, torch.float32)
    dx, by_scale, by_shift = backward(native_norm, *arguments)
    inputs = Case(c.kind, c.x, y, grad, scales, c.shift, c.mean, c.rstd, None)
    exact_dx, exact_by_scale, _ = exact_gradients(inputs)
    assert error(by_scale[columns], exact_by_scale[columns]) <= 8 * 2.0**-24
    assert error(by_scale, exact_by_scale) <= 4 * ROUNDING[dtype]
    assert error(dx, exact_dx) <= 2 * ROUNDING[dtype]
    assert error(by_shift, grad.double().sum(0)) <= 4 * 2.0**-24


def test_a_column_that_is_none_is_refused():
    c = case(4, 65, torch.float32, False)
    for column in (-1, 65):
        with pytest.raises(IndexError, match=r"columns must lie in 0 to 64; got tensor"):
            rescued = torch.tensor([column]), c.x[:, :1], None
            backward(native_norm, c.grad, c.y, None, c.rstd, *c.factors(), *rescued, c.kind, True, torch.float32)


@pytest.mark.parametrize(
    ("argument", "index", "wrong"),
    [("mean", 2, (4, 2)), ("rstd", 3, (3, 1)), ("scale", 4, (5,)), ("shift", 5, (67,)), ("rescued", 7, (4, 2))],
)
def test_what_does_not_fit_never_reaches_a_kernel(argument, index, wrong):
    c = case(4, 66, torch.float32, True)
    saved = [c.grad, c.y, c.mean, c.rstd, *c.factors(), torch.tensor([1]), c.x[:, 1:2], None]
    saved[index] = torch.ones(wrong)
    with pytest.raises(ValueError, match=rf"{argument} must have shape \(.*\); got \("):
        backward(native_norm, *saved, c.kind, True, torch.float32)


def test_bits_and_outputs_that_do_not_fit_never_reach_a_kernel():
    c = case(4, 66, torch.bfloat16, True)
    with pytest.raises(ValueError, match=r"bits must have shape \(4, 18\); got \(4, 17\)"):
        backward(native_norm, *c.saved(True)[:-1], c.bits[:, 1:], c.kind, True, torch.float32)
    with pytest.raises(ValueError, match=r"y must have shape \(4, 66\); got \(4, 65\)"):
        native_norm.norm_statistics(c.x, c.y[:, 1:], *c.factors(), c.kind)


@MEANS
@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_is_no_number_spreads_as_in_eager(bad, dtype, centered, level):
    c = case(6, 50, dtype, centered)
    x, grad = c.x.clone(), c.grad.clone()
    x[1, 7], grad[3, 40] = bad, bad
    statistics = [backend.norm_statistics(x, c.y, *c.factors(), c.kind)[:2] for backend in (native_norm, eager_norm)]
    for result, expected in zip(*statistics, strict=True):
        assert torch.equal(result.isnan(), expected.isnan()) and torch.equal(result.isinf(), expected.isinf())
    y = c.y.clone()
    y[1, 7] = bad
    for kept, output in ((x, False), (y, True)):
        mean = c.mean if centered and not output else None
        arguments = (grad, kept, mean, c.rstd, *c.factors(), None, None, None, c.kind, output, torch.float32)
        for result, expected in zip(backward(native_norm, *arguments), backward(eager_norm, *arguments), strict=True):
            assert torch.equal(result.isfinite(), expected.isfinite())
            assert torch.equal(result.isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_rows_anywhere_in_memory(dtype, level):
    """Unaligned, strided, broadcast: the results are those of tensors in rows."""
    c = case(12, 45, dtype, True)

    def unaligned(t: Tensor) -> Tensor:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    def transposed(t: Tensor) -> Tensor:
        return t.t().contiguous().t()

    expected = backward(native_norm, *c.saved(True), c.kind, True, dtype)
    for moved in (unaligned, transposed, lambda t: t[None].expand(2, *t.shape)[1]):
        x, y, grad = map(moved, (c.x, c.y, c.grad))
        mean, rstd, bits = native_norm.norm_statistics(x, y, *c.factors(), c.kind)
        assert torch.equal(mean, c.mean) and torch.equal(rstd, c.rstd)
        assert bits is c.bits is None or torch.equal(bits, c.bits)
        results = backward(native_norm, grad, y, *c.saved(True)[2:], c.kind, True, dtype)
        assert all(torch.equal(result, wanted) for result, wanted in zip(results, expected, strict=True))
    broadcast = c.grad[:1].expand(12, 45)
    results = backward(native_norm, broadcast, *c.saved(True)[1:], c.kind, True, dtype)
    wanted = backward(native_norm, broadcast.contiguous(), *c.saved(True)[1:], c.kind, True, dtype)
    assert all(torch.equal(*pair) for pair in zip(results, wanted, strict=True))


@pytest.mark.parametrize("shape", [(40,), (2, 3, 40), (2, 0, 40), (0, 40), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_every_shape(shape, dtype):
    x = torch.randn(shape).to(dtype)
    kind = Norm(True, 1e-5, remainder=True)
    results = native_norm.norm_statistics(x, x, None, None, kind)
    expected = eager_norm.norm_statistics(x, x, None, None, kind)
    assert [None if t is None else t.shape for t in results] == [None if t is None else t.shape for t in expected]
    if results[2] is not None:
        assert results[2].shape == packed_shape(x.shape, 2)
    gradients = [
        backward(backend, x, x, None, expected[1], *4 * [None], expected[2], kind, True, dtype)
        for backend in (native_norm, eager_norm)
    ]
    for result, wanted in zip(*gradients, strict=True):
        assert result.shape == wanted.shape and result.dtype == wanted.dtype
        assert torch.allclose(result.float(), wanted.float(), rtol=4 * ROUNDING[result.dtype], atol=1e-5)


def test_the_backend_is_chosen_by_dtype_and_device():
    select, norm = backends.select_norm_statistics, Norm(True, 1e-5, remainder=True)
    for dtype in DTYPES:
        for other in DTYPES:
            assert select(torch.empty(2, dtype=dtype), torch.empty(2, dtype=other), norm) is native_norm
    wide = torch.empty(2, dtype=torch.float64)
    assert select(wide, torch.empty(2), norm) is select(torch.empty(2), wide, norm) is eager_norm
    meta = torch.empty(2, device="meta")
    assert select(meta, meta, norm) is eager_norm


def test_wider_parameters_are_left_to_eager():
    """A float64 weight under a float32 input: nothing of it is rounded."""
    c = case(5, 24, torch.float32, True)
    wide = [t.double() for t in (c.mean, c.rstd, *c.factors())]
    arguments = (c.grad, c.x, *wide, None, None, None, c.kind, False, torch.float64)
    for result, expected in zip(backward(native_norm, *arguments), backward(eager_norm, *arguments), strict=True):
        assert result.dtype == torch.float64 and torch.equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_nothing_is_allocated_beyond_the_results_and_the_workspace(dtype):
    c = case(256, 1024, dtype, True)
    with torch.profiler.profile(profile_memory=True) as profile:
        backward(native_norm, *c.saved(True), c.kind, True, dtype)
    allocated = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)
    assert allocated <= c.x.nbytes + (6 + 1 + 1) * 1024 * 8 + 64


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_modules_reach_the_kernels(dtype, monkeypatch):
    """The public norm, through the op: without the kernels it would raise here."""
    module = optiacts.LayerNorm(96).to(dtype)
    with torch.no_grad():
        module.weight.uniform_(0.5, 1.5)
    x = torch.randn(3, 5, 96).to(dtype).requires_grad_()
    grad = torch.randn(3, 5, 96).to(dtype)
    module(x).backward(grad)  # the first use, which compares with eager
    for backend in (eager_norm.norm_statistics, eager_norm.norm_backward):
        monkeypatch.setattr(eager_norm, backend.__name__, None)
    results = torch.autograd.grad(module(x), (x, module.weight, module.bias), grad)
    inputs = [t.detach().double().requires_grad_() for t in (x, module.weight, module.bias)]
    exact = torch.autograd.grad(torch.nn.functional.layer_norm(inputs[0], (96,), *inputs[1:]), inputs, grad.double())
    for result, wanted in zip(results, exact, strict=True):
        assert error(result, wanted) <= 2 * ROUNDING[dtype]


WIDTHS = (16, 32, 48, 128, 144, 256, 272, 768, 1008, 1024, 1040, 4096, 5120, 8208)  # multiples of a vector


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_a_layer_norms_forward_has_pytorchs_bits(dtype, level):
    """Of rows of any number of vectors, on any number of threads, with what is no number and what is far from 0."""
    before = torch.get_num_threads()
    try:
        for threads, width in itertools.product((1, 2), WIDTHS):
            torch.set_num_threads(threads)
            x = (2 + 3 * torch.randn(23, width)).to(dtype)
            x[3], x[4, 1:], x[5, 7], x[6, 15], x[7, width // 2], x[8] = 0.0, 6e4, torch.inf, torch.nan, 1e30, -0.0
            weight, bias = 1 + 0.2 * torch.randn(width), 0.2 * torch.randn(width)
            given = x, (width,), weight, bias, 1e-5
            kernels = backends.select_layer_norm(x)
            for ours, theirs in zip(kernels.layer_norm(*given), torch.native_layer_norm(*given), strict=True):
                assert ours.shape == theirs.shape and ours.stride() == theirs.stride()
                assert same_bits(ours, theirs), (threads, width)
    finally:
        torch.set_num_threads(before)


def test_a_layer_norm_that_has_other_bits_is_left_to_pytorch(monkeypatch):
    """The trial finds that out, without a warning, since PyTorch's own op is as good."""
    run = native_norm.run

    def other(name, *arguments):
        arguments = list(arguments)
        if name == "layer_norm":
            arguments[4] *= 1 + 1e-6  # eps
        return run(name, *arguments)

    monkeypatch.setattr(native_norm, "run", other)
    monkeypatch.setattr(native_norm, "_unfused", set())
    monkeypatch.delitem(selection.chosen, ("layer_norm", torch.device("cpu"), torch.float32), raising=False)
    x, weight, bias = torch.randn(3, 64), torch.randn(64), torch.randn(64)
    expected = torch.native_layer_norm(x, (64,), weight, bias, 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = backends.select_layer_norm(x).layer_norm(x, (64,), weight, bias, 1e-5)
    assert torch.float32 in native_norm._unfused and not native_norm.unfuse(torch.float32)
    assert all(map(torch.equal, found, expected))
    monkeypatch.undo()
    selection.forget()


def test_what_is_no_whole_vector_or_not_dense_goes_pytorchs_way(monkeypatch):
    monkeypatch.setattr(native_norm, "run", lambda name, *arguments: pytest.fail(f"{name} was called"))
    wide = torch.randn(6, 64)
    for x, dtype in (
        (torch.randn(4, 40), torch.float32),  # two and a half vectors
        (wide.t().contiguous().t(), torch.float32),
        (wide[:, :32], torch.float32),
        (torch.randn(0, 64), torch.float32),
        (torch.randn(1025, 1024), torch.float32),  # more than 4 MiB, and no huge page
        (wide.double(), torch.float64),
        (wide.bfloat16(), torch.bfloat16),
    ):
        weight, bias = (torch.randn(x.shape[-1], dtype=dtype) for _ in range(2))
        given = x, (x.shape[-1],), weight, bias, 1e-5
        assert all(map(torch.equal, native_norm.layer_norm(*given), torch.native_layer_norm(*given)))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        native_norm.layer_norm(wide, (32,), torch.randn(32), torch.randn(32), 1e-5)


def test_weights_apart_from_each_other_reach_the_kernel_in_a_row():
    x, weights = torch.randn(5, 64), torch.randn(64, 2)
    given = x, (64,), weights[:, 0], weights[:, 1], 1e-5
    for ours, theirs in zip(native_norm.layer_norm(*given), torch.native_layer_norm(*given), strict=True):
        assert torch.equal(ours, theirs)


def test_too_little_memory_for_the_sums_is_an_error(monkeypatch):
    monkeypatch.setattr(native_norm, "run", lambda name, *_: -2 if name == "norm_backward" else 0)
    x, rstd, factor = torch.randn(3, 64), torch.ones(3, 1), torch.ones(64)
    saved = Saved(x, None, rstd, factor, factor, None, None, None, True, True)
    with pytest.raises(MemoryError, match="too little memory"):
        native_norm.norm_backward(x, saved, torch.float32)
