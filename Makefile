# make demo   set up, then precompute, train and evaluate on the embedded default
# make test   set up, then run the tests
# make check  format, lint, types, import rules and tests: what a commit must pass
# make bench  store and evaluation against their floors and peers (25 minutes, 17 GB of disk)
# make soak   a fault campaign: writers killed, files altered; and the tests that take too long for every time

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help demo test lint check bench soak clean

help:
	@sed -n 's/^# //p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo
	$(BIN)/pipeline precompute --dataset scenes
	$(BIN)/trainer run --store stores/scenes.zarr --run runs/demo --resume
	$(BIN)/eval retrieval --run runs/demo --index
	@echo
	@echo "These three commands ran; with $(VENV) activated they need no more than:"
	@echo "  pipeline precompute --dataset scenes"
	@echo "  trainer run"
	@echo "  eval retrieval --index"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

bench: $(VENV)/.dev
	$(UV) --requirement benchmarks/requirements-store.txt
	$(BIN)/python benchmarks/store.py
	$(BIN)/python -m venv runs/peers
	$(BIN)/uv pip install --quiet --python runs/peers/bin/python --requirement benchmarks/requirements-evaluation.txt
	$(BIN)/python benchmarks/evaluation.py --peer-python runs/peers/bin/python

soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV)

# uv installs the environment in a fraction of pip's time and shares its files between environments.
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; say which with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.demo: pyproject.toml | $(BIN)/uv
	$(UV) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/uv
	$(UV) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
