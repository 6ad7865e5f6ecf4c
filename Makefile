# One door for everything; `make` alone lists what is behind it. Needs Python and make.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install portrait test check

help: ## list the targets
	@awk -F ' *:.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make .venv with everything pinned in constraints.txt

portrait: $(INSTALLED) ## train a network and write its portrait: ARGS="--help" lists the options
	$(BIN)/python -m experiments.portrait $(ARGS)

test: $(INSTALLED) ## run all tests and doctests: ARGS="tests/test_house.py" runs some
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(INSTALLED) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The stamp is the last step, so an interrupted install starts again, and from nothing:
# what is installed is what the files say. Neural Tangents goes in without its
# dependencies: it asks for TensorFlow, which nothing here uses.
$(INSTALLED): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxtheory needs Python 3.11 or later, but \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) --editable ".[experiments]" --group test --group lint
	$(PIP_INSTALL) --no-deps neural-tangents frozendict
	@touch $@
