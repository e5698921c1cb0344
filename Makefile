# The commands of this project; `make help` lists them. Each one sets up .venv first (ci/setup_env.py).
PYTHON ?= python3
RUN := .venv/bin/python
ARGS ?=
# Each process (tests/conftest.py: how many) takes one module after the other, in the order of the
# folders, so that the short ones of tests/unit fill the end.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup serve kernels test test-gpu lint format clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## create or refresh .venv (about 11 GB the first time, then seconds)
	@$(PYTHON) ci/setup_env.py

serve: setup ## serve LongCat-nano, answer one chat request, keep serving (ARGS=--once stops then)
	@$(RUN) -m launch.serve $(ARGS)

kernels: setup ## compile our GPU kernels now: a server then finds them in Triton's cache
	@$(RUN) -m longcat_kernels.warm_up $(ARGS)

test: setup ## run the tests (ARGS goes to pytest: make test ARGS="-n 0 -k wheel")
	@$(RUN) -m pytest $(PARALLEL) $(ARGS)

test-gpu: setup ## run the tests that need one or more GPUs
	@$(RUN) -m pytest -m "gpu or multi_gpu" $(ARGS)

lint: setup ## ruff (lint and format), mypy, import contracts, shell syntax
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/lint-imports --no-cache
	for script in .ci/run launch/*.sh benchmarks/*.sh; do bash -n $$script || exit; done

format: setup ## rewrite the sources with ruff
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean: ## remove .venv and everything built in this checkout
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

distclean: clean ## also remove the cached environments and the random checkpoint (other checkouts share them)
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/sglang-longcat"
