# Two commands matter: `make demo` and `make test`. Both do all the set-up they need.
PYTHON ?= python3.11
VENV   := .venv
COVERAGE ?= term
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# One thread per process: two OpenMP threads on two cores collapse as soon as anything else runs.
export OMP_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1

.PHONY: help setup demo test test-slow lint docs bench-setup clean
.DEFAULT_GOAL := help

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)

$(STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	@touch $@

setup: $(STAMP)  ## make the virtual environment and install Cloister in it

demo: $(STAMP)  ## run all seven stages on real rows and write a report
	$(BIN)/cloister demo --out demo-out

lint: $(VENV)/.installed-dev  ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## lint, then all tests but the slow ones, with coverage
	$(BIN)/pytest -n 2 -m "not slow" --cov --cov-report=$(COVERAGE) $(ARGS)

test-slow: $(VENV)/.installed-dev  ## long property tests and attacks
	$(BIN)/pytest -n 2 -m slow $(ARGS)

docs: $(VENV)/.installed-dev  ## build the documentation site
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt mkdocs mkdocs-material 'mkdocstrings[python]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-setup:  ## install the peers that benchmarks compare with, each in an environment of its own
	test -x .peers/flower/bin/python || python3 -m venv .peers/flower
	.peers/flower/bin/pip install --quiet --disable-pip-version-check flwr==1.41.0

clean:  ## remove what the targets above made
	rm -rf $(VENV) .peers demo-out site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
