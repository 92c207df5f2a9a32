# `make demo` and `make test` need nothing but Python 3.11 or later. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo-output
TOOLS := build/tools

.PHONY: help setup demo test check bench soak audit sbom lock
.DEFAULT_GOAL := help

help:
	@echo "make demo    a simulated scan, from DICOM to the report in $(DEMO)/"
	@echo "make test    all tests but the slow ones"
	@echo "make check   style, formatting and types"
	@echo "make bench   speed and accuracy of every step and method, into docs/ (20 to 30 minutes on two cores)"
	@echo "make soak    the slow tests"
	@echo "make audit   known vulnerabilities of what we depend on; asks PyPI"
	@echo "make sbom    bills of materials (CycloneDX) of .venv and of the image, into build/"
	@echo "make lock    docker/lock.txt anew, after a change of constraints.txt"

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Chiron needs Python 3.11 or later: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "pip>=25.1"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e . --group dev
	@touch $@

demo: setup
	$(BIN)/chiron demo $(DEMO)
	@find $(DEMO) -name '*_qsm.html' -exec echo "The report:" {} \;

test: setup
	@$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/chiron bench --output docs/benchmarks.md
	$(BIN)/chiron grid --output docs/accuracy.md

soak: setup
	$(BIN)/python -m pytest -m slow

# --strict: a package that could not be looked up is an error, not a pass.
audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes -r docker/lock.txt
	$(TOOLS)/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

sbom: setup $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible -o build/sbom.json $(BIN)/python
	$(TOOLS)/bin/cyclonedx-py requirements --output-reproducible -o build/sbom-image.json docker/lock.txt

lock: setup
	$(BIN)/python docker/lock.py

$(TOOLS)/.installed: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@
