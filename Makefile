# Everything runs in .venv, which is made from requirements.lock: there is nothing to activate.

PYTHON ?= python3
CORES ?= 2
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)

export PYTHONPATH := $(CURDIR)/src

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: .venv/installed ## create .venv with the pinned packages

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1);" \
			"name another with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

demo: setup ## run the pipeline on generated ratings and print the result
	$(SNAKEMAKE) results/demo/metrics.json
	$(BIN)/python -m refine.reporting.table results/demo/metrics.json

test: setup ## run all tests
	$(BIN)/python -m pytest

lint: setup ## check style, types and the workflow
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: setup ## format all code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/snakefmt Snakefile workflow

lock: ## renew requirements.lock from pyproject.toml (needs uv)
	{ echo "# The pinned packages of the CPU set-up, the tests and the cluster plugins; renewed by: make lock."; \
	  uv pip compile --universal --python-version 3.11 --all-extras --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --quiet pyproject.toml | sed 's/+cpu//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean: ## remove results, logs and checkpoints, not the raw files in resources/
	rm -rf results logs checkpoints
