# `make demo` and `make test` need nothing but Python >= 3.11: each makes its environment in .venv on first use.
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/demo
BIN    := $(VENV)/bin

.PHONY: help install demo test test-fast lint format index clean

help: ## what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(VENV)/.installed ## make the environment (about 6 GB with PyPI's torch)

# --upgrade-deps is left out on purpose: the constraints were resolved with the pip that every Python brings.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install ## train the demo detector, evaluate it, write pictures, say where they are
	rm -rf $(RUN)
	$(BIN)/vistrain fit --config configs/demo/detection.yaml run.folder=$(RUN)
	$(BIN)/vistrain test --ckpt $(RUN)/best.ckpt
	$(BIN)/vistrain predict --ckpt $(RUN)/best.ckpt --input 'data/shapes-*/val/*1.jpg' --output $(RUN)/predictions
	@echo
	@echo "curves          $(RUN)/curves.png"
	@echo "training batch  $(RUN)/first_batch.png"
	@echo "truth | found   $(RUN)/eval/"
	@echo "predictions     $(RUN)/predictions/"

test: lint ## ruff, mypy, import contracts, all tests
	$(BIN)/python -m pytest

test-fast: install ## the tests that are not marked slow
	$(BIN)/python -m pytest -m "not slow"

lint: install ## ruff (lint, format), mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

index: install ## write vistrain/config/index.json anew from the sources
	$(BIN)/python tools/make_index.py

clean: ## remove the environment and caches (runs and data stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
