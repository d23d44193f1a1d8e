# Two commands matter: `make demo` and `make test`. Both do all the set-up they need.
PYTHON ?= python3.11
VENV   := .venv
COVERAGE ?= term
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# What enclaves need of the system; and what is built against it, which may fail and then says so.
PACKAGES := swtpm swtpm-tools tpm2-tools libtss2-dev libseccomp2
APT      := apt-get --quiet -o Acquire::Retries=1 -o Acquire::http::Timeout=30
TPM       = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-tpm.txt
# One thread per process: two OpenMP threads on two cores collapse as soon as anything else runs.
export OMP_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1

.PHONY: help setup demo test test-slow fuzz lint docs bench-setup enclave-packages clean
.DEFAULT_GOAL := help

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)

$(STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	@$(TPM) >/dev/null 2>&1 || echo "tpm2-pytss cannot be built here (make enclave-packages): tests that need a TPM are skipped"
	@touch $@

enclave-packages: $(VENV)/.installed-dev  ## swtpm, libtss2 and libseccomp: as root with apt; says why where it cannot
	@if dpkg-query -W $(PACKAGES) >/dev/null 2>&1; then echo "all there: $(PACKAGES)"; \
	elif ! command -v apt-get >/dev/null 2>&1; then echo "no apt-get here; install what corresponds to $(PACKAGES)"; \
	elif [ "$$(id -u)" != 0 ]; then echo "as root: apt-get install $(PACKAGES)"; \
	else ($(APT) update && DEBIAN_FRONTEND=noninteractive $(APT) install --yes --no-install-recommends $(PACKAGES)) \
	|| echo "apt-get failed: tests that need a TPM are skipped"; fi
	@$(TPM) || echo "tpm2-pytss was not installed: tests that need a TPM are skipped"

setup: $(STAMP)  ## make the virtual environment and install Cloister in it

demo: $(STAMP)  ## run all seven stages on real rows and write a report
	$(BIN)/cloister demo --out demo-out

lint: $(VENV)/.installed-dev  ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## lint, then all tests but the slow ones, with coverage
	$(BIN)/pytest -n 2 -m "not slow" $(if $(COVERAGE),--cov --cov-report=$(COVERAGE)) $(ARGS)

test-slow: $(VENV)/.installed-dev  ## long property tests and attacks
	$(BIN)/pytest -n 2 -m slow $(ARGS)

fuzz: $(VENV)/.installed-dev  ## fuzz every parser of evidence for SECONDS each, 600 by default
	CLOISTER_FUZZ_SECONDS=$(or $(SECONDS),600) $(BIN)/pytest -n 2 -m slow -k fuzz tests/enclave $(ARGS)

docs: $(VENV)/.installed-dev  ## build the documentation site
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt mkdocs mkdocs-material 'mkdocstrings[python]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-setup:  ## install the peers that benchmarks compare with, each in an environment of its own
	test -x .peers/flower/bin/python || python3 -m venv .peers/flower
	.peers/flower/bin/pip install --quiet --disable-pip-version-check flwr==1.41.0

clean:  ## remove what the targets above made
	rm -rf $(VENV) .peers demo-out site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
