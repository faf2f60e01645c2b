# `make demo` and `make test` need nothing but Python >= 3.11: each makes its environment in .venv on first use.
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/demo
OLDEST ?= .venv-oldest
BIN    := $(VENV)/bin
# Two worker processes of one thread each: most tests are too small to keep two threads busy. Bytecode is kept also where
# the surroundings ask for none: the workers, and every process that a test starts, would compile all sources again.
ALONE  := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
TESTS  := -m pytest -n 2 --dist worksteal

.PHONY: help install install-oldest demo test test-fast test-oldest long lint format index results leaves docs clean

help: ## what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

install: $(VENV)/.installed ## make the environment (about 6 GB with PyPI's torch)

# --upgrade-deps is left out on purpose: the constraints were resolved with the pip that every Python brings.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

install-oldest: $(OLDEST)/.installed ## make an environment of the oldest versions that pyproject.toml allows (about 6 GB)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[dev]"
	touch $@

demo: install ## train a small detector, evaluate it, draw what it finds (about five minutes)
	rm -rf $(RUN)
	$(BIN)/vistrain fit --config configs/demo/detection.yaml run.folder=$(RUN)
	$(BIN)/vistrain test --ckpt $(RUN)/best.ckpt
	$(BIN)/vistrain predict --ckpt $(RUN)/best.ckpt --input 'data/shapes-*-1000-100-*/val/*1.jpg' --output $(RUN)/predictions
	@echo
	@echo "Pictures:"
	@echo "  what it finds    $(RUN)/predictions/pictures/"
	@echo "  beside the truth $(RUN)/eval/"
	@echo "  training batch   $(RUN)/first_batch.png"
	@echo "  curves           $(RUN)/curves.png"

test: lint ## ruff, mypy, import contracts, all tests
	$(ALONE) $(BIN)/python $(TESTS)

test-fast: install ## the tests of less than a second
	$(ALONE) $(BIN)/python $(TESTS) -m "not slow and not long"

long: install ## write anew which tests take a second or more (tests/long.txt)
	$(ALONE) $(BIN)/python $(TESTS) -m "not slow" --note-long

test-oldest: install-oldest ## the tests that are not marked slow, with the oldest versions that pyproject.toml allows
	$(ALONE) $(OLDEST)/bin/python $(TESTS) -m "not slow"

lint: install ## ruff (lint, format), mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

index: install ## write the index of names anew from the sources
	$(BIN)/python tools/make_index.py

results: install ## write docs/results.md anew from configs and records
	$(BIN)/python tools/make_results.py

leaves: install ## build the network of every shipped config, changed or not (minutes)
	LEAVES=all $(BIN)/python -m pytest tests/config/test_leaves.py

docs: install ## build the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/zensical build --clean

clean: ## remove the environments and caches (runs and data stay)
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
