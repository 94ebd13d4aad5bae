"""The CPU kernels at every instruction set: exhaustively in 16-bit dtypes, in bit space in float32."""

import functools
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

import optiacts
from optiacts import backends, curves, ops
from optiacts.backends import eager, native, native_library, selection
from optiacts.backends.native_constants import IN_REGISTERS, constants_of
from optiacts.decoders import derivative_from_output, registers
from optiacts.decoders.table import decode_table, every_value
from optiacts.packing import pack, unpack
from tests import fresh
from tests.kernels import CURVES, DTYPES, HALVES, LEVELS, decode_float32, named, same_bits


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    native_library.use_level(request.param)
    yield request.param
    native_library.use_level(native_library.best_level())


def bit_space(count: int, curve: curves.Curve) -> torch.Tensor:
    """float32 values of random bit patterns (NaNs, infinities, subnormals), of N(0, 1), and about the minimum."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(torch.float32)
    normal = torch.randn(count, generator=generator)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45, 3.4e38, -3.4e38])
    return torch.cat([patterns, normal, curve.x_min + torch.linspace(-0.2, 0.2, count), special])


@pytest.mark.parametrize("curve", CURVES, **named)
@pytest.mark.parametrize("dtype", HALVES, **named)
def test_16bit_results_are_those_of_eager_for_every_input(curve, dtype, level):
    x = every_value(dtype)
    y, bits = native.activation_forward(x, curve, [])
    expected_y, expected_bits = eager.activation_forward(x, curve, [])
    assert same_bits(y, expected_y) and torch.equal(bits, expected_bits)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    for grad in (torch.ones_like(y), shuffled):
        expected = eager.activation_backward(grad, y, bits, curve)
        assert same_bits(native.activation_backward(grad, y, bits, curve), expected)


@pytest.mark.parametrize("curve", CURVES, **named)
@pytest.mark.parametrize("dtype", HALVES, **named)
def test_16bit_decode_rounds_the_table_once(curve, dtype, level):
    y = every_value(dtype)
    for left in (False, True):
        bits = pack(torch.full_like(y, left, dtype=torch.bool))
        slope = native.activation_backward(torch.ones_like(y), y, bits, curve)
        table = decode_table(curve.name, dtype).view(2, -1)[int(left)]
        assert same_bits(slope, table.double().to(dtype))


# How far a kernel may be from the same decode in plain torch, whose additions and multiplications round apart
UNITS = {"portable": 2, "avx2": 2, "avx512": 4}


@functools.cache
def reference(curve: curves.Curve) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, and f' in float64: of the input that PyTorch's float32 output stands for, and of the input itself."""
    x = bit_space(40_000, curve)
    left = x < curve.threshold(torch.float32)
    return x, derivative_from_output(curve, curve.forward(x).double(), left), curve.derivative(x.double(), torch)


@pytest.mark.parametrize("curve", CURVES, **named)
def test_float32_decode_against_float64(curve, level):
    x, of_output, of_input = reference(curve)
    y, bits = native.activation_forward(x, curve, [])
    left = x < curve.threshold(torch.float32)
    assert torch.equal(bits, pack(left))
    slope = native.activation_backward(torch.ones_like(y), y, bits, curve)
    assert torch.equal(slope.isnan(), y.isnan())  # of a NaN, and of -inf where PyTorch's own forward has one
    kept = ~slope.isnan()
    away = (x - curve.x_min).abs() > 0.1
    assert (slope - of_output).abs()[kept & away].max() <= 2e-6
    kept_finite = kept & x.isfinite()
    lost = (of_output - of_input).abs()[kept_finite].max()  # by PyTorch's rounding, which depends on the CPU
    assert (slope - of_input).abs()[kept_finite].max() <= max(1.2e-4, lost)
    assert (slope - decode_float32(y, left, curve, level)).abs()[kept].max() <= UNITS[level] * 2.0**-24


@pytest.mark.parametrize("curve", CURVES, **named)
def test_float32_decode_of_a_correctly_rounded_output(curve, level):
    """Here no allowance is needed: 1.2e-4 anywhere, 2e-6 away from the minimum."""
    x, _, of_input = reference(curve)
    x, of_input = x[x.isfinite()], of_input[x.isfinite()]
    y = curve.function(x.double(), torch).float()
    slope = native.activation_backward(torch.ones_like(y), y, pack(x < curve.threshold(torch.float32)), curve)
    error = (slope - of_input).abs()
    assert error.max() <= 1.2e-4
    assert error[(x - curve.x_min).abs() > 0.1].max() <= 2e-6


@pytest.mark.parametrize("beta", [0.05, 0.7, 20.0])
def test_float32_decode_of_a_scaled_curve(beta, level):
    """As exact as the curve that it is made from, of inputs as far out as there."""
    curve = curves.get(f"swish(beta={beta})")
    of_silu = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    x = of_silu / beta
    slope = native.activation_backward(
        torch.ones(len(x)), curve.function(x, torch).float(), pack(x < curve.threshold(torch.float32)), curve
    )
    error = (slope - curve.derivative(x, torch)).abs()
    assert error.max() <= 1.2e-4
    assert error[(of_silu - beta * curve.x_min).abs() > 0.1].max() <= 2e-6


def test_a_slope_that_does_not_come_near_1_is_read_from_lines(monkeypatch):
    assert constants_of("silu", torch.float32).dtype == IN_REGISTERS
    for name, limit in (("_FURTHEST", 10.0), ("_MOST_ERROR", 1e-7)):
        with monkeypatch.context() as patched:
            patched.setattr(registers, name, limit)
            patched.setattr(registers, "registers", registers.registers.__wrapped__)
            assert constants_of.__wrapped__("silu", torch.float32).dtype == DTYPES.index(torch.float32)


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (7,), (8,), (13, 0), (3, 5), (2, 3, 17), (129, 1), (40_003,), (5, 9001)]
)
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_every_shape_splits_right(shape, dtype, level):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator).to(dtype)
    grad = torch.randn(shape, generator=generator).to(dtype)
    curve = curves.get("gelu")
    y, bits = native.activation_forward(x, curve, [])
    assert torch.equal(bits, pack(x < curve.threshold(dtype)))
    result = native.activation_backward(grad, y, bits, curve)
    assert result.shape == x.shape and result.dtype == dtype
    # one element at a time: neither the position nor the thread may matter
    flat = [t.reshape(-1)[:: max(1, x.numel() // 97)] for t in (grad, y, unpack(bits, x.shape), result)]
    for g, o, left, expected in zip(*flat, strict=True):
        assert same_bits(native.activation_backward(g, o, pack(left), curve), expected)


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_strided_inputs_and_results(dtype):
    curve = curves.get("silu")
    base = torch.randn(6, 10, 20, generator=torch.Generator().manual_seed(3)).to(dtype)
    for x in (base.transpose(0, 2), base[:, ::2], base[..., 3:16], base[:, :1].expand(6, 10, 20)):
        y, bits = native.activation_forward(x, curve, [])
        expected = curve.forward(x)
        assert same_bits(y, expected) and y.stride() == expected.stride()
        assert torch.equal(bits, pack(x < curve.threshold(dtype)))
        grad = x * 3
        result = native.activation_backward(grad, y, bits, curve)
        assert same_bits(result, native.activation_backward(grad.contiguous(), y.contiguous(), bits, curve))
        assert result.is_contiguous()


def test_a_gradient_of_another_dtype_is_not_rounded_first():
    curve = curves.get("gelu")
    y, bits = native.activation_forward(every_value(torch.bfloat16), curve, [])
    grad = torch.linspace(-3, 3, len(y))
    assert same_bits(
        native.activation_backward(grad, y, bits, curve), eager.activation_backward(grad, y, bits, curve)
    )


@pytest.mark.parametrize("curve", CURVES, **named)
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_large_results_in_huge_pages_are_the_same(curve, dtype, monkeypatch):
    x = bit_space(100_000, curve).to(dtype)
    expected = native.activation_forward(x, curve, [])
    grad = native.activation_backward(x, *expected, curve)
    monkeypatch.setattr(native, "HUGE_PAGES_FROM", 1)
    y, bits = native.activation_forward(x, curve, [])
    assert same_bits(y, expected[0]) and torch.equal(bits, expected[1])
    assert same_bits(native.activation_backward(x, y, bits, curve), grad)


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_inplace(dtype):
    curve = curves.get("mish")
    x = torch.randn(1001).to(dtype)
    y, bits = native.activation_forward(x, curve, [])
    assert torch.equal(native.activation_forward_(x, curve, []), bits)
    assert same_bits(x, y)


def test_the_backend_is_chosen_by_dtype_and_decoder():
    gelu = curves.get("gelu")
    assert [backends.select(torch.empty(2, dtype=dtype), gelu).name for dtype in DTYPES] == ["native"] * 3
    assert backends.select(torch.empty(2, dtype=torch.float64), gelu).name == "eager"
    assert backends.select(torch.empty(2, device="meta"), gelu).name == "eager"
    assert backends.select(torch.empty(2), curves.get("relu6")).name == "eager"


def test_nothing_is_loaded_by_the_import():
    code = "import optiacts.backends.native_library as n; print(n._load.cache_info().currsize)"
    assert fresh.run(code, check=True).stdout == "0\n"


def run(code: str, **environment: str) -> str:
    process = fresh.run(code, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment)
    return (process.stdout + process.stderr).strip()


@pytest.mark.parametrize("wanted", LEVELS)
def test_the_environment_chooses_the_level(wanted):
    code = "import optiacts; print(optiacts.doctor().cpu['instruction set'])"
    assert run(code, OPTIACTS_CPU_LEVEL=wanted).startswith(wanted)


def test_an_unknown_level_is_refused():
    code = "import torch, optiacts; optiacts.gelu(torch.ones(2, requires_grad=True))"
    output = run(code, OPTIACTS_CPU_LEVEL="sse9")
    assert "ValueError: OPTIACTS_CPU_LEVEL must be one of portable, avx2, avx512; got 'sse9'" in output
    with pytest.raises(ValueError, match="level must be one of portable, avx2, avx512; got 'best'"):
        native_library.use_level("best")


def test_without_a_library_eager_serves_and_doctor_says_why(monkeypatch):
    monkeypatch.setattr(native_library, "FILE", "_absent.so")
    native_library._load.cache_clear()
    selection.forget()
    try:
        report = optiacts.doctor().devices[0]
        assert (report.device, report.backend) == ("cpu", "eager")
        assert "_absent.so was not built" in report.not_used["native"]
        assert backends.select(torch.empty(2), curves.get("gelu")).name == "eager"
        with pytest.raises(RuntimeError, match=r"native CPU kernels are not available: .*_absent\.so was not built"):
            native_library.level()
    finally:
        native_library._load.cache_clear()
        selection.forget()


def test_one_openmp_runtime_in_the_process():
    x = torch.randn(1 << 18, requires_grad=True)
    optiacts.gelu(x).sum().backward()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    runtimes = set(re.findall(r"\S*/lib(?:gomp|iomp5|omp)\S*\.so\S*", maps.read_text()))
    assert len(runtimes) == 1, runtimes
    assert native_library.has_threads()


def gradient(x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    optiacts.gelu(x).sum().backward()
    assert x.grad is not None
    return x.grad


def large() -> torch.Tensor:
    return torch.randn(1 << 18, generator=torch.Generator().manual_seed(4))


def sum_in_child(connection: Connection) -> None:
    torch.set_num_threads(1)  # as DataLoader's workers do: PyTorch's own kernels would hang with more
    connection.send(gradient(large()).double().sum().item())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_of_a_threaded_parent():
    expected = gradient(large()).double().sum().item()  # starts the parent's thread pool
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=sum_in_child, args=(sender,))
    process.start()
    assert receiver.poll(50), "the child hangs"
    assert receiver.recv() == pytest.approx(expected, rel=1e-12)
    process.join(10)
    assert process.exitcode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_our_kernels_use_one_thread_in_a_forked_child_by_themselves():
    x = large()
    y, bits = native.activation_forward(x, curves.get("gelu"), [])
    out = torch.empty_like(x)
    native.activation_backward(x, y, bits, curves.get("gelu"))
    constants, library = constants_of("gelu", torch.float32), native_library.library()
    pid = os.fork()
    if pid == 0:  # nothing of torch here that could start threads
        addresses = (tensor.data_ptr() for tensor in (x, y, bits, out))
        library.optiacts_backward(
            constants.dtype, *addresses, 1, x.numel(), constants.decoder, native_library.threads()
        )
        os._exit(native_library.threads())
    for _ in range(500):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the child hangs")
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1


class Gradients(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return gradient(large())


def test_inside_dataloader_workers():
    expected = gradient(large())
    loader = torch.utils.data.DataLoader(Gradients(), batch_size=None, num_workers=2, timeout=50)
    assert all(torch.equal(result, expected) for result in loader)


def test_from_several_threads_at_once():
    expected, results = gradient(large()), []
    threads = [threading.Thread(target=lambda: results.extend(gradient(large()) for _ in range(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20 and all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_nothing_is_allocated_beyond_the_results(dtype):
    curve = curves.get("silu")
    x = torch.randn(256, 1024).to(dtype)
    y, bits = native.activation_forward(x, curve, [])  # makes the tables
    with torch.profiler.profile(profile_memory=True) as profile:
        native.activation_forward(x, curve, [])
        native.activation_backward(x, y, bits, curve)
    allocated = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    assert sorted(allocated) == sorted([x.nbytes, x.nbytes, x.numel() // 8])


def disassembly(library: Path) -> Iterator[tuple[str, str]]:
    """(function, instruction) of the code in a library."""
    text = subprocess.run(
        ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    function = ""
    for line in text.splitlines():
        if heading := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = heading[1]
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+(.*)", line):
            yield function, instruction[1]


@pytest.mark.skipif("avx2" not in LEVELS, reason="needs x86-64 with more than one level")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_no_instruction_beyond_the_baseline_outside_the_dispatched_kernels():
    # In AT&T syntax every instruction that needs AVX starts with v or names a ymm, zmm or mask register.
    advanced = re.compile(r"v[a-z]|k(mov|or|and|test|shift|unpck)|.*%([yz]mm|k[0-7])")
    builds: dict[str, list[bool]] = {}
    # where two decoders take turns at one kernel, by instruction set
    code = (
        (re.sub("Chain(Lines|Registers)", "ChainPolynomials", name), text)
        for name, text in disassembly(Path(native_library.library()._name))
    )
    for name, instructions in itertools.groupby(code, key=lambda pair: pair[0]):
        builds.setdefault(name, []).append(any(advanced.match(instruction) for _, instruction in instructions))
    kernels = [name for name, needs_more in builds.items() if any(needs_more)]
    # each function of Kernels, NormKernels and ChainKernels once for every CPU, twice for better ones; nothing else
    # needs more
    in_registers = [name for name in kernels if "Registers" in name]  # which AVX-512 alone has enough of
    assert all(builds[name] == [True] for name in in_registers) and len(in_registers) == 4, in_registers
    others = set(kernels) - set(in_registers)
    assert all(sorted(builds[name]) == [False, True, True] for name in others), others
    assert len(others) == 84, others


@pytest.mark.parametrize("dtype", HALVES, **named)
def test_copies_round_as_pytorch_does(dtype, level):
    """To float32 every value, from there patterns of all kinds, those halfway between two numbers among them."""
    narrow, wide = every_value(dtype), bit_space(1 << 16, curves.get("silu"))
    halfway = narrow.float().view(torch.int32) + (1 << (15 if dtype is torch.bfloat16 else 12))
    for x, to in (
        (narrow, torch.float32),
        (wide, dtype),
        (halfway.view(torch.float32), dtype),
        (narrow[:77], torch.float32),
        (wide[:77], dtype),
        (narrow[:77], dtype),
    ):
        found = torch.empty(len(x) + 1, dtype=to).fill_(5.0)
        of = native.DTYPES.index
        native_library.run("copy", of(x.dtype), x.data_ptr(), of(to), found.data_ptr(), len(x))
        assert same_bits(found[:-1], x.to(to)) and found[-1] == 5


def test_ops_reach_the_native_kernels():
    x = every_value(torch.bfloat16)
    y, bits = ops.activation_forward(x, "silu", [])
    expected = native.activation_forward(x, curves.get("silu"), [])
    assert same_bits(y, expected[0]) and torch.equal(bits, expected[1])


def test_a_variant_keeps_its_own_forward_in_fresh_pages(monkeypatch):
    """The result of a large tensor is written into pages of our own, by ``forward_out`` if the curve has one."""
    monkeypatch.setattr(native, "HUGE_PAGES_FROM", 0)
    x = torch.randn(4096).bfloat16()
    for curve in curves.GATES.values():
        assert same_bits(backends.select(x, curve).activation_forward(x, curve, [])[0], curve.forward(x)), curve.name


VERSIONS = """
import warnings, torch, optiacts
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        x = torch.ones(2, requires_grad=True)
        optiacts.gelu(x).sum().backward()
    print([str(w.message) for w in caught if "optiacts" in str(w.message)])
print(float(x.grad[0]))
print(optiacts.doctor())
"""


@pytest.mark.parametrize("number", [0, native_library.INTERFACE + 1])
def test_a_library_of_another_interface_is_not_used(number: int, tmp_path: Path) -> None:
    """What was built from other sources serves nobody: eager does, with one warning that `doctor` repeats."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(f"int optiacts_interface(void) {{ return {number}; }}\n" if number else "int other;\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    caught, gradient, *diagnosis = run(VERSIONS, OPTIACTS_CPU_LIBRARY=str(library)).splitlines()
    assert caught.count("SlowPath") == 0 and caught.count("the native CPU kernels are not used") == 1, caught
    assert f"its interface is {number}, this package calls {native_library.INTERFACE}" in caught
    assert float(gradient) == pytest.approx(1.0833155, abs=2e-6)
    assert "cpu: eager" in diagnosis and str(library) in "\n".join(diagnosis)


def test_both_sides_have_one_interface_number() -> None:
    header = (Path(__file__).parents[1] / "csrc/optiacts.h").read_text()
    assert f"enum {{ OPTIACTS_INTERFACE = {native_library.INTERFACE} }};" in header
    assert native_library.library().optiacts_interface() == native_library.INTERFACE
