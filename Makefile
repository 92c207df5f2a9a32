# `make demo` and `make test` need nothing but Python 3.11 or later. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo-output

.PHONY: help setup demo test check bench soak
.DEFAULT_GOAL := help

help:
	@echo "make demo    a simulated scan, from DICOM to the report in $(DEMO)/"
	@echo "make test    all tests but the slow ones"
	@echo "make check   style, formatting and types"
	@echo "make bench   speed and accuracy of every step and method, into docs/ (20 to 30 minutes on two cores)"
	@echo "make soak    the slow tests"

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Chiron needs Python 3.11 or later: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . --group dev
	@touch $@

demo: setup
	$(BIN)/chiron demo $(DEMO)
	@find $(DEMO) -name '*_qsm.html' -exec echo "The report:" {} \;

test: setup
	@$(BIN)/python -m pytest -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/chiron bench --output docs/benchmarks.md
	$(BIN)/chiron grid --output docs/accuracy.md

soak: setup
	$(BIN)/python -m pytest -m slow
