# Everything runs from a bare checkout with Python 3.10+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Stamps: what the demo runs is installed, or everything.
DEMO := $(VENV)/.demo
ALL := $(VENV)/.installed
# Processes that run tests: most of them wait for servers, not for a core.
WORKERS ?= 3
# Hundreds of processes are started here: without bytecode each would compile everything it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-fast lint bench lock clean

help:            ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

$(DEMO): LOCK := requirements-worker.lock
$(ALL): LOCK := requirements.lock
$(DEMO) $(ALL): requirements-build.lock requirements-worker.lock requirements.lock pyproject.toml tools/install.py
	@echo "installing $(LOCK) into $(VENV), which takes a while where nothing is cached"
	@$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/install.py $(LOCK)
	@touch $(DEMO) $@

demo: $(DEMO)    ## Run workflows/ on an embedded ComfyUI; pictures in out/
	$(BIN)/python tools/demo.py --out out

test: $(ALL)     ## Every test, a real S3 server included
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(ALL)  ## Unit, contract and engine tests alone
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/unit tests/contract tests/engine

lint: $(ALL)     ## Style, types, arrows, shell, Dockerfile, workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck start.sh .ci/run docker/*.sh
	$(BIN)/hadolint Dockerfile
	$(BIN)/python tools/actionlint/run.py

bench: $(ALL)    ## Speed and memory, as ratios against named baselines
	$(BIN)/python -m bench

COMPILE := $(BIN)/uv pip compile --quiet --python $(BIN)/python --generate-hashes --universal --python-version 3.10 --no-emit-index-url --no-header

lock: $(DEMO)    ## Pin what pyproject.toml asks for, with hashes
	$(COMPILE) --all-extras --group dev pyproject.toml -o requirements.lock
	$(COMPILE) --extra agent pyproject.toml -o requirements-worker.lock
	$(COMPILE) --group pyproject.toml:build -o requirements-build.lock

clean:           ## Remove .venv and out/
	rm -rf $(VENV) out
