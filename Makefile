# Everything a developer needs; `make` alone lists it. Only relative paths, so that the checkout may lie anywhere.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON := .venv/bin/python
LOCAL := $(PYTHON) -m jobsboard.local --die-with-parent
# Named by the lock's hash: a changed lock is installed again, a touched one is not.
LOCK_HASH := $(shell cksum < requirements.lock | tr -c '0-9\n' '-' | tr -d '\n')
STAMP := .venv/.installed-$(LOCK_HASH)
# What is never imported need not be compiled. The lock's own pip comes first: a Python's may take twice as long.
INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-input --no-compile --require-hashes
ARGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(STAMP) ## run everything with sample contracts and live traffic, on port 8000 or the next free one (PORT=...)
	@exec $(LOCAL) demo $(ARGS)

.PHONY: up
up: $(STAMP) ## run everything without sample data
	@exec $(LOCAL) up $(ARGS)

.PHONY: test
test: $(STAMP) ## run all tests on servers of their own (ARGS="-m 'not acceptance' -k ..." goes to pytest)
	@exec $(LOCAL) test $(ARGS)

.PHONY: lint
lint: $(STAMP) ## ruff, mypy, import-linter, and Django's own checks
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(LOCAL) isolated -- python -m mypy
	.venv/bin/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(LOCAL) isolated -- $(PYTHON) manage.py check --fail-level WARNING
	$(LOCAL) isolated -- $(PYTHON) manage.py makemigrations --check --dry-run

.PHONY: bench
bench: $(STAMP) ## measure throughput on servers of its own
	@exec $(LOCAL) isolated -- python -m benchmarks.drain $(ARGS)

.PHONY: flow
flow: $(STAMP) ## limits, rates, groups and order on real workers: what is kept, how much of it is used (ARGS="--only order")
	@exec $(LOCAL) isolated -- python -m benchmarks.flow $(ARGS)

.PHONY: scale
scale: $(STAMP) ## time metrics, outcomes and the board with 10 thousand jobs and with a million (ARGS="--large 100000")
	@exec $(LOCAL) isolated -- python -m benchmarks.scale $(ARGS)

.PHONY: chaos
chaos: $(STAMP) ## kill and starve a whole stack of its own, then check that nothing is lost or doubled (SEED=...)
	@exec $(LOCAL) isolated -- python -m benchmarks.chaos $(ARGS)

.PHONY: plan-kill
plan-kill: $(STAMP) ## kill what carries out a replay plan of a stack of its own, then check each item, effect and count (SEED=...)
	@exec $(LOCAL) isolated -- python -m benchmarks.plan_kill $(ARGS)

.PHONY: cells
cells: $(STAMP) ## five public fault cells and four more, Jobsboard beside plain Celery (ARGS="--only crash_recovery")
	@exec $(LOCAL) isolated -- python -m benchmarks.cells $(ARGS)

.PHONY: fuzz
fuzz: $(STAMP) ## fuzz the HTTP API of a stack of its own for 5 minutes (SEED=..., ARGS="--seconds 60")
	@exec $(LOCAL) isolated -- python -m benchmarks.fuzz_api $(ARGS)

.PHONY: mutations
mutations: $(STAMP) ## break promises in copies of the tree and name the tests that go red
	@exec $(PYTHON) -m benchmarks.mutations $(ARGS)

.PHONY: screenshots
screenshots: $(STAMP) ## take the pictures of the documentation
	@exec $(LOCAL) isolated -- python docs/screenshots.py $(ARGS)

.PHONY: setup
setup: $(STAMP) ## only install .venv from the lock

.PHONY: lock
lock: $(STAMP) ## resolve requirements.lock anew from pyproject.toml
	.venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --group dev --extra otel \
	  --generate-hashes --no-emit-index-url --no-header --output-file requirements.lock

.PHONY: clean
clean: ## remove .venv, caches, and the local stack with its data
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m jobsboard.local clean; fi
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .static
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP):
	@set -eu; \
	found=; \
	for candidate in python3.13 python3.12 python3.11 python3 python; do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Jobsboard needs Python 3.11 or newer with its venv module; none was found on the PATH." >&2; \
	  echo "On Debian or Ubuntu: apt-get install python3 python3-venv" >&2; \
	  exit 1; \
	fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  echo "Creating .venv with $$("$$found" --version)"; \
	  rm -rf .venv; "$$found" -m venv .venv; \
	fi; \
	echo "Installing requirements.lock into .venv"; \
	sed -n '/^pip==/,/[^\\]$$/p' requirements.lock > .venv/pip.lock; \
	for lock in .venv/pip.lock requirements.lock; do \
	  $(INSTALL) -r "$$lock"; \
	done; \
	rm -f .venv/.installed-*; \
	touch $@
