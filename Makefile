# Everything runs from a bare checkout with Python 3.10+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Processes that run tests: most of them wait for servers, not for a core.
WORKERS ?= 3

.PHONY: help demo test lint bench lock clean

help:            ## This list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP)   ## Run workflows/ through the real RunPod SDK and an embedded ComfyUI; pictures in out/
	$(BIN)/python -m settee.demo --out out

test: $(STAMP)   ## Every test, a real S3 server included
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(STAMP)   ## Style, types, shell, Dockerfile, workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck start.sh .ci/run docker/*.sh
	$(BIN)/hadolint Dockerfile
	$(BIN)/python tools/actionlint/run.py

bench: $(STAMP)  ## Speed and memory, as ratios against named baselines
	$(BIN)/python -m bench

COMPILE := uv pip compile --quiet --generate-hashes --universal --python-version 3.10 --no-emit-index-url --no-header

lock:            ## Pin what pyproject.toml asks for, with hashes: all of it, and what the image needs
	$(COMPILE) --all-extras pyproject.toml -o requirements.lock
	$(COMPILE) --extra worker pyproject.toml -o requirements-worker.lock

clean:
	rm -rf $(VENV) out
