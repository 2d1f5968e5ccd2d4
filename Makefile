# `make compare` and `make test` do everything, set-up included.
PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help setup compare test test-slow test-fla test-all bench check format clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.done  ## make .venv with the exact versions of constraints.txt

# torch first and by its exact pin: otherwise pip may choose a newer build with gigabytes of CUDA packages
$(VENV)/.done: pyproject.toml constraints.txt
	$(PY) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

compare: setup  ## train five mixers on two tasks with three seeds, and compare them (15 to 30 minutes on 2 cores)
	$(BIN)/python train.py -m experiment=compare

test: setup  ## run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 -m 'not slow and not fla'

test-slow: setup  ## run the slow tests, which `make test` leaves out
	$(BIN)/python -m pytest -q -n 2 -m slow

test-fla: setup  ## check the calls of flash-linear-attention's kernels without a GPU, on Triton's interpreter
	$(BIN)/pip install -q --no-deps -c constraints.txt fla-core triton
	$(BIN)/python -m pytest -q -m fla tests/ops/test_fla.py

test-all: test test-slow  ## run every test

bench: setup  ## measure the engines against their peers (about 30 minutes, on a quiet machine)
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.ops

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV) mixers models tasks compare train.py

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what set-up and runs have left
	rm -rf $(VENV) runs multirun outputs .pytest_cache .ruff_cache .hypothesis
