# Each target makes what it needs: `make serve` on a fresh machine ends in a running server.
.DEFAULT_GOAL := help
.PHONY: help serve test test-gpu chaos fuzz clients check bench train clean
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?=
ARGS ?=

help:  ## this list
	@echo "usage: make <target> [ARGS='...']"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 12

serve: $(VENV)/.serve-installed  ## start the server on this machine, on port 8080 (PORT=...)
	@exec $(BIN)/dfastllm serve $(if $(PORT),--port $(PORT)) $(ARGS)

test: $(VENV)/.dev-installed  ## run all tests that need no GPU
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

test-gpu: $(VENV)/.dev-installed  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

chaos: $(VENV)/.dev-installed  ## drive hundreds of jobs through random faults (ARGS='--help')
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.dev-installed  ## minutes of malformed, random and broken-off requests (ROUNDS=...)
	DFASTLLM_FUZZ_ROUNDS=$(or $(ROUNDS),20) $(BIN)/python -m pytest tests/clients --timeout=1800 $(ARGS)

clients: $(VENV)/.serve-installed  ## other projects' clients against a server started for them
	PYTHON=$(PYTHON) SERVER=$(BIN)/dfastllm tests/clients/run.sh

check: $(VENV)/.dev-installed  ## lint, format, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.dev-installed  ## measure latency and throughput of a server started for it
	$(BIN)/python -m benchmarks $(or $(ARGS),all)

train: $(VENV)/.dev-installed  ## train the built-in models anew (ARGS='--help')
	$(BIN)/dfastllm train $(ARGS)

clean:  ## remove the virtual environments and all caches
	rm -rf .venv .venv-ci tests/clients/.environments build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.serve-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the server into $(VENV) (once; torch is large)"
	$(BIN)/pip install -q -c constraints.txt -e '.[api,worker,embedded]'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the server and its development tools into $(VENV)"
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.serve-installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old or missing: dfastllm needs Python 3.11 or newer (make PYTHON=python3.12 ...)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get install -y python3-venv; } || \
	  { echo "Python's venv module is missing: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo '*' > $(VENV)/.gitignore
