# `make quickstart` and `make test` do all the set-up; they need Python 3.11 or later, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-slow coverage precommit wheel publish clean

quickstart: $(INSTALLED)
	$(BIN)/trl-unlearn quickstart

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

coverage: $(INSTALLED)
	$(BIN)/python -m pytest --cov --cov-report=term-missing

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

clean:
	rm -rf $(VENV) dist build outputs
