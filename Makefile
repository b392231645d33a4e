# `make quickstart` and `make test` do all the set-up; they need Python 3.11 or later, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH ?= torch==2.13.0

.PHONY: quickstart test test-slow test-lowest test-latest benchmark coverage precommit wheel publish clean

quickstart: $(INSTALLED)
	$(BIN)/trl-unlearn quickstart

# Modules of tests side by side; OMP_NUM_THREADS is 1 in each
PYTEST_OPTIONS := --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# With the oldest and the newest releases that pyproject.toml allows, each in an environment of its own.
# For a part of the tests: make test-lowest TESTS=tests/trainer
test-lowest test-latest: test-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest $(PYTEST_OPTIONS) $(TESTS)

# About two hours on 2 cores. One thread: with other work on the machine, only the processor's time can be trusted
benchmark: $(INSTALLED)
	status=0; for name in training evaluation estimate; do \
		OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/$$name.py --output_dir outputs/benchmark || status=1; \
	done; exit $$status

coverage: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) --cov --cov-report=term-missing

precommit: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

publish: $(INSTALLED)  # for maintainers, with a token of the Hub
	$(BIN)/python utils/publish.py --organization $(or $(ORGANIZATION),trl-unlearn)

wheel: $(INSTALLED)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trl-unlearn needs Python 3.11 or later; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

.venv-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	grep -oE '[A-Za-z_-]+>=[0-9.]+' pyproject.toml | sed 's/>=/==/' > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet $(TORCH)
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/constraints.txt --editable ".[dev]"
	touch $@

.venv-latest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/pip install --quiet $(TORCH)
	.venv-latest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable ".[dev]" $(TORCH)
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-latest dist build outputs
