# `make demo` and `make test` set up everything they need in .venv on a clean machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint fit docs-figures clean

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

docs-figures: $(VENV)/.installed
	$(BIN)/python tools/report_figures.py

clean:
	rm -rf $(VENV) build out

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
