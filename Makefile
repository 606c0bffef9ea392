# `make help` lists the targets. Each target first installs its dependencies into .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEPTRY := NO_COLOR=1 $(BIN)/deptry
# Processes of a test run.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# Tests with services wait for a third of their time, so they have one process more. The longest tests first (see
# tests/conftest.py), one test or one file at a time.
SERVICE_WORKERS ?= 3
PYTEST_IN_ORDER := $(BIN)/python -m pytest -n $(SERVICE_WORKERS) --dist loadgroup --no-loadscope-reorder
UNIT := tests/unit tests/contract
PROPERTY := tests/property tests/component
# Tests that compile kernels. Their files are named, because importing all tests takes longer than running these.
KERNELS := $(addprefix tests/unit/test_,fresh_scorer.py pipeline.py ensemble_trees.py ensemble_manifest.py features_engine.py)

# Some images set this; then each of the many processes of a test run compiles all of its imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo incident test background check kernels format lint types imports unit integration property promtool prove prove-all bench schemas schemas-check \
        lock lock-check stack-up stack-down clean

help:  ## Show this list
	@echo "stream_scorer: make <target>"; echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}'
	@echo; echo "Start with 'make demo'. Proofs: 'make prove P=kill-once' (SEED=, N=, BREAK=1), listed in docs/proofs.md."

setup: $(STAMP)  ## Install everything, pinned by hash, into .venv

$(STAMP): requirements/bootstrap.txt requirements/dev.txt pyproject.toml
	@echo "installing into $(VENV) (once)..." >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/bootstrap.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## Demo with real services: training, live traffic, a faulty update and its rollback, report
	@$(BIN)/stream-scorer demo

incident: setup  ## The demo, with its report on the incident in incident-report/
	@$(BIN)/stream-scorer demo --report incident-report

test: setup  ## Everything CI runs: format, lint, types, import rules, locks, unit, property, integration
	@$(MAKE) --no-print-directory -j 2 --output-sync=target kernels types format-check lint imports lock-check schemas-check
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory -j 2 integration background

# These tests use the time in which tests with services wait, at a lower priority. They print at their end.
background: setup
	@output=$$(nice -n 10 $(PYTEST) --timeout 900 $(PROPERTY) 2>&1); code=$$?; echo "$$output"; exit $$code

check: setup  ## Fast checks, no services needed
	@$(MAKE) --no-print-directory -j 2 --output-sync=target kernels types format-check lint imports lock-check schemas-check
	@$(PYTEST) -m "not integration" $(UNIT) $(PROPERTY)

# In a fresh clone, each of the two pytest workers would compile the kernels for itself. Compiling uses one core for as long
# as the other checks use the other one.
kernels: setup
	@$(BIN)/python -m pytest --timeout 900 -m kernels $(KERNELS)

format: setup  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet .

format-check: setup
	@$(BIN)/ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }

lint: setup  ## Lint, and fail on functions longer than 70 lines
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python tools/check_functions.py

types: setup  ## Strict type checks
	@$(BIN)/mypy

imports: setup  ## Check layer rules, and that pyproject.toml declares all imports
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	@$(DEPTRY) stream_scorer
	@$(DEPTRY) proofs tests tools examples --ignore DEP002,DEP004

unit: setup  ## Unit tests (seconds, no services)
	@$(PYTEST) -m "not integration" $(UNIT)

property: setup  ## Property tests, and component tests that train, replay or draw (no services)
	@$(PYTEST) $(PROPERTY)

integration: setup  ## Tests on a real Kafka, Redis and MLflow
	@$(PYTEST_IN_ORDER) --durations=15 -m integration tests/contract tests/integration tests/e2e

promtool: setup  ## Check alert rules, their unit tests and dashboards with promtool (needs Go; the first run builds it, minutes)
	@$(BIN)/python tools/check_rules.py

prove: setup  ## Run one proof: make prove P=<slug> [SEED=1 N=... BREAK=1]
	@test -n "$(P)" || { $(BIN)/python -m proofs --list; exit 2; }
	@SEED="$(SEED)" N="$(N)" BREAK="$(BREAK)" $(BIN)/python -m proofs "$(P)"

prove-all: setup  ## Run all proofs, one result line per proof: make prove-all [ONLY=a,b SKIP=c,d SEED=1 N=...] (hours; see docs/proofs.md)
	@SEED="$(SEED)" N="$(N)" $(BIN)/python -m proofs --all --only "$(ONLY)" --skip "$(SKIP)"

bench: setup  ## Throughput, latency and CPU cost, compared with the passthrough (about 6 minutes on an idle machine)
	@$(BIN)/stream-scorer bench

schemas: setup  ## Write generated files: schemas/, the dashboards, the Argo workflow, and the notebook of own models
	@$(BIN)/python -m stream_scorer.serde.schemas schemas
	@$(BIN)/python tools/make_documents.py
	@$(BIN)/python tools/make_dashboards.py
	@$(BIN)/python tools/make_workflows.py

schemas-check: setup
	@$(BIN)/python -m stream_scorer.serde.schemas schemas --check
	@$(BIN)/python tools/make_documents.py --check
	@$(BIN)/python tools/make_dashboards.py --check
	@$(BIN)/python tools/make_workflows.py --check

$(BIN)/uv: requirements/bootstrap.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/bootstrap.txt

LOCK = $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11
lock: $(BIN)/uv  ## Resolve dependencies and write the hashed lock files
	@$(LOCK) pyproject.toml --extra dev -o requirements/dev.txt
	@$(LOCK) pyproject.toml -o requirements/scorer.txt
	@$(LOCK) pyproject.toml --extra monitor -o requirements/monitor.txt
	@$(LOCK) pyproject.toml --extra replay --extra report --extra onnx --extra skops -o requirements/replay.txt
	@$(LOCK) pyproject.toml --extra train --extra replay --extra report --extra openlineage --extra onnx --extra skops -o requirements/train.txt
	@$(LOCK) pyproject.toml --extra ray -c requirements/dev.txt -o requirements/ray.txt
	@$(LOCK) requirements/own-models.in -c requirements/dev.txt -o requirements/own-models.txt
	@$(LOCK) requirements/peers.in -o requirements/peers.txt
	@$(LOCK) requirements/peers-alibi.in -o requirements/peers-alibi.txt
	@$(LOCK) requirements/workflows-airflow.in -o requirements/workflows-airflow.txt
	@$(LOCK) requirements/workflows-kfp.in -o requirements/workflows-kfp.txt
	@$(LOCK) requirements/workflows-prefect.in -o requirements/workflows-prefect.txt
	@$(BIN)/python tools/make_reference.py
	@echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)" | $(LOCK) - -o requirements/bootstrap.txt

lock-check: setup
	@$(BIN)/python tools/check_locks.py
	@$(BIN)/python tools/make_reference.py --check

stack-up: setup  ## Start a local Kafka, Redis and MLflow that outlive the shell
	@$(BIN)/stream-scorer stack up

stack-down: setup  ## Stop the local Kafka, Redis and MLflow
	@$(BIN)/stream-scorer stack down

clean:  ## Remove generated files: .venv, data, caches
	@if [ -x $(BIN)/stream-scorer ]; then $(BIN)/stream-scorer stack down || true; fi
	@rm -rf $(VENV) .stream-scorer .pytest_cache .mypy_cache .ruff_cache .hypothesis
